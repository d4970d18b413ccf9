"""The evidence of a verdict as rows of tables: cases, quality against limits, tests by suite. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from django.utils.functional import Promise
from django.utils.safestring import SafeString

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
    """A metric as measured and as limited; `held` is None where the class has no constant limit on it."""

    label: str | Promise
    measured: str
    limit: str
    held: bool | None
    bar: SafeString | str


def quality_rows(quality: Mapping[str, float], quality_class: str) -> list[QualityRow]:
    """The quality metrics of a verdict against the limits of its declared class, known metrics first."""
    rows = []
    for code, metric in wording.METRICS.items():
        if code not in quality:
            continue
        value = float(quality[code])
        rows.append(
            QualityRow(
                metric.label,
                _written(code, value, metric.digits),
                limit_text(code, quality_class),
                limits.meets(metric, value, quality_class),
                limits.limit_bar(metric, value, quality_class) if metric.limits else "",
            )
        )
    for code in sorted(quality.keys() - wording.METRICS.keys()):
        rows.append(QualityRow(code, quantities.plain(float(quality[code])), quantities.NOTHING, None, ""))
    return rows


def _written(code: str, value: float, digits: int) -> str:
    if code == "mean_kl":
        return f"{quantities.plain(value)}{quantities.THIN}nat"
    if code == "delta_ppl":
        return quantities.signed_percent(value, digits)
    return quantities.percent(value, digits)


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
