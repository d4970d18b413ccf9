"""Where an attempt is, stage by stage, as the bars of the pages show it. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from swapbench.web.wording import STAGE_NAMES
from workers.protocol import Outcome

BarState = Literal["ahead", "now", "done", "bad"]


@dataclass(frozen=True)
class StageShown:
    """A stage's bar: `done` of `total`; `seconds` once it has ended."""

    name: str
    state: BarState
    done: float = 0
    total: float = 1
    seconds: float | None = None
    note: str = ""


def stages_of_running(stage: str, done: int, total: int, entered: Sequence[Mapping[str, Any]]) -> list[StageShown]:
    """The bars of an attempt without an outcome: what was entered before `stage` is done.

    `entered` is [{stage, since}] in order; the time of a stage is known once the next one has begun.
    """
    since = {str(item.get("stage")): float(item.get("since") or 0) for item in entered}
    begun = [name for name in STAGE_NAMES if name in since]
    shown = []
    for name in STAGE_NAMES:
        if name == stage:
            shown.append(StageShown(name, "now", min(done, total) if total else 0, total or 1))
        elif name in begun and stage in STAGE_NAMES and STAGE_NAMES.index(name) < STAGE_NAMES.index(stage):
            later = [since[other] for other in begun if STAGE_NAMES.index(other) > STAGE_NAMES.index(name)]
            shown.append(StageShown(name, "done", 1, 1, max(0.0, min(later) - since[name]) if later else None))
        else:
            shown.append(StageShown(name, "ahead"))
    return shown


def stages_of_outcome(outcome: Outcome) -> list[StageShown]:
    """The bars of an attempt that ended: full where a stage ran, red where the attempt stopped.

    An outcome cannot hold the time of its own report, but that it is there says that it was made.
    """
    reports = {report.stage: report for report in outcome.stages}
    blamed = {reason.stage for reason in outcome.reasons if reason.stage}
    if outcome.status != "passed":
        for implementation in outcome.implementations:
            if implementation.status != "passed":
                blamed |= {reason.stage for reason in implementation.reasons if reason.stage}
    return [
        StageShown(name, "bad" if name in blamed else "done", 1, 1, reports[name].seconds, reports[name].note)
        if name in reports
        else StageShown(name, "done" if name == "report" else "ahead", 1 if name == "report" else 0)
        for name in STAGE_NAMES
    ]
