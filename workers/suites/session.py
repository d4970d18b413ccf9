"""Runs one suite under pytest inside the judge, and turns what its tests raise into reports and reasons."""

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.slots.kind import Case
from workers.judge.trial import StageTimedOut, Trial, reason_of, recipe_of, status_of
from workers.protocol import Reason, Status, SuiteName, TestReport
from workers.sandbox import SandboxError

HERE = Path(__file__).resolve().parent
MAX_FAILURES = 12

# From the least to the most serious: an outcome takes the worst.
SEVERITY: tuple[Status, ...] = (
    "passed",
    "inconclusive",
    "failed",
    "timed_out_code",
    "impossible",
    "tampered",
    "timed_out_infrastructure",
    "invalid_environment",
)


def worst(statuses: list[Status]) -> Status:
    """The most serious of `statuses`; "passed" where there are none."""
    return max(statuses, key=SEVERITY.index, default="passed")


@dataclass
class SuiteResult:
    """What a suite found."""

    statuses: list[Status] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    tests: list[TestReport] = field(default_factory=list)

    @property
    def status(self) -> Status:
        """An unmendable environment outweighs what it made fail; proof of tampering outweighs everything."""
        if "tampered" in self.statuses:
            return "tampered"
        return worst(self.statuses)


class Reporter:
    """The pytest plugin that a suite runs under: gives tests what they judge, and collects how they end."""

    def __init__(self, suite: SuiteName, bench: Any, trial: Trial, quiet: bool = False) -> None:
        self.suite = suite
        self.bench = bench
        self.trial = trial
        self.quiet = quiet
        self.result = SuiteResult()
        self._total = 0
        self._done = 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._total = len(session.items)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: "pytest.CallInfo[None]") -> Iterator[None]:
        report: pytest.TestReport = yield  # type: ignore[assignment]
        error = call.excinfo.value if call.excinfo is not None else None
        if call.when == "call" or error is not None:
            self._take(item, call, error, report)
        return report  # type: ignore[return-value]

    def _take(
        self, item: pytest.Item, call: "pytest.CallInfo[None]", error: BaseException | None, report: pytest.TestReport
    ) -> None:
        self._done += 1
        name = item.name
        if report.skipped:
            self.result.tests.append(TestReport(self.suite, name, "skipped", call.duration, _skip_reason(report)))
        elif error is None:
            self.result.tests.append(TestReport(self.suite, name, "passed", call.duration))
        else:
            case = _case_of(item)
            reason = reason_of(error, self.suite, case.name if case is not None else "")
            if case is not None and not reason.recipe:
                reason = msgspec.structs.replace(reason, recipe=recipe_of(case))
            self.result.tests.append(TestReport(self.suite, name, "failed", call.duration, reason.sentence))
            self.result.statuses.append(status_of(error))
            if all(reason.sentence != other.sentence for other in self.result.reasons):
                self.result.reasons.append(reason)
            if isinstance(error, StageTimedOut | SandboxError) or len(self.result.statuses) >= MAX_FAILURES:
                item.session.shouldstop = "no further test can tell more"
        if not self.quiet:
            self.trial.say(self.suite, name, self._done, self._total, "tests")


def _skip_reason(report: pytest.TestReport) -> str:
    return str(report.longrepr[2]).removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""


def _case_of(item: pytest.Item) -> Case | None:
    found = getattr(item, "callspec", None)
    case = found.params.get("case") if found is not None else None
    return case if isinstance(case, Case) else None


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Keeps what the environment would have pytest do, such as PYTEST_ADDOPTS or the plugins of who runs the judge, out of a suite."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("PYTEST_")}
    for name in kept:
        del os.environ[name]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    try:
        yield
    finally:
        os.environ.pop("PYTEST_DISABLE_PLUGIN_AUTOLOAD", None)
        os.environ.update(kept)


def run_suite(
    suite: SuiteName, bench: Any, trial: Trial, arguments: list[str] | None = None, quiet: bool = False
) -> SuiteResult:
    """Runs the suite's tests with `bench` as what they judge with. Whatever goes wrong in the judge itself is a reason, too."""
    reporter = Reporter(suite, bench, trial, quiet)
    options = [
        str(HERE / suite),
        f"--rootdir={HERE}",
        f"--confcutdir={HERE}",
        "-c",
        str(HERE / "pytest.ini"),
        "-p",
        "no:cacheprovider",
        "-p",
        "no:faulthandler",
        # Collects all garbage of the judge several times at the end of each run: half a second for each pair.
        "-p",
        "no:unraisableexception",
        "-q",
        "--tb=short",
        *(arguments or []),
    ]
    said = io.StringIO()
    with own_settings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = pytest.main(options, plugins=[reporter])
    known = code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)
    if not known or (not reporter.result.tests and not reporter.result.statuses):
        reporter.result.statuses.append("invalid_environment")
        reporter.result.reasons.append(
            Reason(
                "internal_error",
                f"The {suite} suite could not be run (pytest exit status {int(code)}): {said.getvalue().strip()[-1500:]}",
                suite,
            )
        )
    return reporter.result
