"""From an outcome to what follows: whether it qualifies, whose fault a failure is, what to do next. Pure."""

from collections.abc import Iterable, Sequence

from workers.protocol import ImplementationOutcome, Reason, Speed, Status

OURS: frozenset[Status] = frozenset({"timed_out_infrastructure", "invalid_environment"})
"""Our fault: replaced for free, and never held against the contributor."""
MEMORY_RATIO = "memory ratio"
MEMORY_CLAIM = 0.9
"""A claim of less memory counts from a tenth less on: below that, allocators round more than is saved."""


def qualifies(outcome: ImplementationOutcome) -> bool:
    """Whether an implementation may enter the merge queue: it passed, and is faster, or smaller and not slower."""
    if outcome.status != "passed":
        return False
    if outcome.speed == "faster":
        return True
    smaller = outcome.figures.get(MEMORY_RATIO, 1.0) <= MEMORY_CLAIM
    return smaller and outcome.speed == "no_difference"


def submission_qualifies(verdicts: Iterable[tuple[str, Status | str, Speed | str, bool]], paths: Sequence[str]) -> bool:
    """Whether a submission may be queued, from (path, status, speed, qualifies) of its current verdicts.

    Every implementation has passed everywhere, none is slower anywhere, and each qualifies on a machine class.
    """
    good: set[str] = set()
    for path, status, speed, qualified in verdicts:
        if status != "passed" or speed == "slower":
            return False
        if qualified:
            good.add(path)
    return bool(paths) and good >= set(paths)


def next_steps(outcome: ImplementationOutcome) -> list[str]:
    """Sentences that say what the author can do now; the judge's own first."""
    said = [reason.next_step for reason in outcome.reasons if reason.next_step]
    return list(dict.fromkeys(said or _usual_steps(outcome)))


def _usual_steps(outcome: ImplementationOutcome) -> list[str]:
    match outcome.status:
        case "passed" if qualifies(outcome):
            return ["Nothing: it enters the merge queue by itself."]
        case "passed" if outcome.speed == "slower":
            return [
                "It is correct but slower. Profile it with `.venv/bin/swapbench check --suite performance`, then push again."
            ]
        case "passed" if outcome.speed == "inconclusive":
            return ["The measurement was too noisy to decide. Ask for another with `/swapbench retry`."]
        case "passed":
            return ["It is correct, but no faster than what is there. Push a change that is, or leave it as it is."]
        case "failed":
            return [
                "Run `.venv/bin/swapbench check` on your machine: it judges as the worker did. Mend what it names, then push."
            ]
        case "timed_out_code":
            return ["The code did not end in time. Look for a loop that does not end or grows too fast, then push."]
        case "impossible":
            return ["The time is below what the hardware can do, so some of the work was not done. Do all of it."]
        case "tampered":
            return ["What the code did is not allowed in a judged implementation. Remove it, then push."]
        case "inconclusive":
            return ["The machine was too busy to measure. Ask for another try with `/swapbench retry`."]
        case _:
            return ["This is not your fault. It is tried again by itself; after that a maintainer can retry it."]


def failure_sentence(reasons: Sequence[Reason], status: Status) -> str:
    """What went wrong on our side, as one sentence."""
    if reasons:
        return reasons[0].sentence
    if status == "invalid_environment":
        return "The machine was not fit to judge."
    return "The attempt did not end in time, through no fault of the code."


def worst(statuses: Iterable[Status | str]) -> str:
    """The status that weighs most; "" of none."""
    order = (
        "tampered",
        "impossible",
        "failed",
        "timed_out_code",
        "invalid_environment",
        "timed_out_infrastructure",
        "inconclusive",
        "passed",
    )
    found = set(statuses)
    return next((status for status in order if status in found), "")
