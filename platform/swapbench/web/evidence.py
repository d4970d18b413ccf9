"""The evidence of a verdict as rows of tables: cases, quality against limits, tests by suite. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from django.utils.functional import Promise
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from swapbench.web import quantities, wording
from swapbench.web.figures import limits
from workers.protocol import CaseSpeed, Interval, TestReport


@dataclass(frozen=True)
class CaseTable:
    rows: list[CaseSpeed]

    @property
    def intervals(self) -> list[Interval]:
        return [row.speedup for row in self.rows]


def case_table(cases: Sequence[Mapping[str, Any]]) -> CaseTable:
    """The cases of a verdict, slowest first: where the time goes comes first."""
    rows = msgspec.convert(list(cases), list[CaseSpeed], strict=False)
    return CaseTable(sorted(rows, key=lambda row: -row.base_seconds))


@dataclass(frozen=True)
class QualityRow:
    """A metric as measured and as limited; `held` is None where the class has no limit on it that is known here."""

    label: str | Promise
    measured: str
    range: str
    limit: str
    held: bool | None
    bar: SafeString | str


@dataclass(frozen=True)
class QualityTable:
    """Metrics with limits as rows, and the facts that they rest on: [(label, text)]."""

    rows: list[QualityRow]
    facts: list[tuple[str | Promise, str]]


def quality_table(quality: Mapping[str, float], quality_class: str, meets: Sequence[str] = ()) -> QualityTable:
    """The quality metrics of a verdict against the limits of its declared class. Estimates decide, not intervals.

    The limit of class E on the KL is measured with the attempt; where that is not in `quality`, `meets` says whether it holds.
    """
    rows = []
    for code, metric in wording.METRICS.items():
        if code not in quality:
            continue
        value = float(quality[code])
        held = limits.meets(metric, value, quality_class)
        limit = limit_text(code, quality_class)
        if code == "mean_kl" and quality_class == "E":
            limit = str(_("2 × noise floor"))
            held = True if quality_class in meets else None
        bar = limits.limit_bar(metric, value, quality_class) if quality_class in metric.limits else ""
        rows.append(QualityRow(metric.label, _written(code, value), _range(code, quality), limit, held, bar))
    facts: list[tuple[str | Promise, str]] = []
    ends = {f"{code}{end}" for code in wording.METRICS for end in ("_low", "_high")}
    for code in sorted(quality.keys() - wording.METRICS.keys() - ends):
        fact = wording.QUALITY_FACTS.get(code, wording.Fact(code.replace("_", " ")))
        facts.append(
            (
                fact.label,
                quantities.plain(float(quality[code])) + (f"{quantities.THIN}{fact.unit}" if fact.unit else ""),
            )
        )
    return QualityTable(rows, facts)


def _written(code: str, value: float) -> str:
    if code == "mean_kl":
        return f"{quantities.plain(value)}{quantities.THIN}nat"
    if code == "delta_ppl":
        return quantities.signed_percent(value, wording.METRICS[code].digits)
    return quantities.percent(value, wording.METRICS[code].digits)


def _range(code: str, quality: Mapping[str, float]) -> str:
    low, high = quality.get(f"{code}_low"), quality.get(f"{code}_high")
    if low is not None and high is not None:
        return f"{_written(code, float(low))} … {_written(code, float(high))}"
    if high is not None:
        return f"≤ {_written(code, float(high))}"
    return f"≥ {_written(code, float(low))}" if low is not None else ""


def limit_text(code: str, quality_class: str) -> str:
    """The limit of a class on a metric with its sign: "≤ 1.2 %"; a dash where the class has no constant limit on it."""
    metric = wording.METRICS[code]
    limit = metric.limits.get(quality_class)
    if limit is None:
        return quantities.NOTHING
    text = f"{limit:g}{quantities.THIN}nat" if code == "mean_kl" else quantities.percent(limit, 1)
    return f"{'≤' if metric.worse == 'more' else '≥'} {text}"


@dataclass(frozen=True)
class TestGroup:
    """The tests of one suite, the failed ones first."""

    suite: str
    tests: list[TestReport]

    @property
    def passed(self) -> int:
        return sum(test.outcome == "passed" for test in self.tests)

    @property
    def skipped(self) -> int:
        return sum(test.outcome == "skipped" for test in self.tests)

    @property
    def failed(self) -> int:
        return sum(test.outcome == "failed" for test in self.tests)

    @property
    def seconds(self) -> float:
        return sum(test.seconds for test in self.tests)


def test_groups(tests: Sequence[Mapping[str, Any]]) -> list[TestGroup]:
    """The tests of a verdict by suite, in the order of the stages."""
    reports = msgspec.convert(list(tests), list[TestReport], strict=False)
    order = {"failed": 0, "skipped": 1, "passed": 2}
    groups = []
    for suite in wording.STAGE_NAMES:
        own = [report for report in reports if report.suite == suite]
        if own:
            groups.append(TestGroup(suite, sorted(own, key=lambda report: order[report.outcome])))
    return groups
