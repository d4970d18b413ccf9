"""Records an outcome: exactly once, by the worker that holds the attempt, and all of it or nothing."""

import logging

import msgspec
from django.db import transaction
from django.utils import timezone

from swapbench.submissions import attempts, audit
from swapbench.submissions.lease import find
from swapbench.submissions.models import Attempt, Result, Submission, Verdict
from swapbench.submissions.text import clean, clean_tree
from swapbench.submissions.verdicts import OURS, failure_sentence, next_steps, qualifies, worst
from workers import calibrations
from workers.protocol import (
    ImplementationOutcome,
    Outcome,
    ProtocolError,
    Reason,
    decode_outcome,
    signature_holds,
)

log = logging.getLogger(__name__)


def record(attempt: str, outcome_text: str, signature: str) -> bool:
    """Whether the outcome was taken. It is not where the signature is wrong, or the attempt has ended already."""
    row = Attempt.objects.filter(pk=find(attempt)).select_related("submission", "build").defer("outcome").first()
    if row is None or not signature_holds(row.token, outcome_text, signature):
        log.warning("An outcome for attempt %r was not taken: its signature does not hold.", attempt)
        return False
    try:
        outcome = decode_outcome(outcome_text)
        if outcome.attempt != attempt:
            raise ProtocolError(f"The outcome is of attempt {outcome.attempt!r}, and was sent as {attempt!r}'s.")
    except ProtocolError as error:
        # The worker that was given the attempt speaks another protocol: our fault, so that it is replaced for free.
        outcome = Outcome(attempt, "invalid_environment", [], [], [Reason("unreadable_outcome", str(error)[:3900])])
        outcome_text = ""
    with transaction.atomic():
        return _record(row, outcome, outcome_text)


def _record(row: Attempt, outcome: Outcome, text: str) -> bool:
    now = timezone.now()
    ours = outcome.status in OURS
    attempts.hold_submission(row)
    ended = Attempt.objects.filter(pk=row.pk, token=row.token, state__in=Attempt.LIVE).update(
        state=Attempt.State.FINISHED,
        status=outcome.status,
        outcome=clean(text),
        make=clean(calibrations.make(outcome.environment))[:120],
        failure_kind=Attempt.Failure.ENVIRONMENT if ours else Attempt.Failure.NONE,
        failure=clean(failure_sentence(_all_reasons(outcome), outcome.status)) if ours else "",
        finished_at=now,
        started_at=row.started_at or now,
    )
    if not ended:
        return False  # It was reaped, called off, or recorded before: that stands.
    Result.objects.bulk_create(
        [result for implementation in outcome.implementations for result in _results(row, implementation)],
        batch_size=500,
    )
    if row.submission is None:
        if ours:
            attempts.replace(row)
        return True
    if ours and attempts.replace(row) is not None:
        return True
    write_verdicts(row, row.submission, outcome)
    settle(row.submission)
    return True


def _all_reasons(outcome: Outcome) -> list[Reason]:
    return [*outcome.reasons, *(reason for found in outcome.implementations for reason in found.reasons)]


def give_up(row: Attempt, sentence: str) -> None:
    """An attempt that will not be replaced: gives its submission the verdict that it was our fault.

    Called inside the transaction that ended the attempt.
    """
    if row.submission is None:
        return
    steps = "This is not your fault. Once the machine works again, ask for another attempt with `/swapbench retry`."
    reasons = [Reason("infrastructure", sentence, next_step=steps)]
    write_verdicts(row, row.submission, Outcome(str(row.pk), "timed_out_infrastructure", [], [], reasons))
    settle(row.submission)


def settle(submission: Submission) -> None:
    """A submission whose attempts have all ended is judged."""
    if submission.attempts.filter(state__in=Attempt.LIVE).exists():
        return
    judged = Submission.objects.filter(pk=submission.pk, state=Submission.State.JUDGING).update(
        state=Submission.State.JUDGED, judged_at=timezone.now()
    )
    if judged:
        status = worst(submission.verdicts.filter(current=True).values_list("status", flat=True))
        audit.note(audit.PLATFORM, "judged", f"{submission}: {status}.", submission)


def write_verdicts(row: Attempt, submission: Submission, outcome: Outcome) -> None:
    """One verdict per slot file of the submission, also where the attempt ended before it looked at the file."""
    version = str(outcome.environment.get("suite version") or row.suite_version)[:64]
    known = {implementation.path: implementation for implementation in outcome.implementations}
    for file in submission.files:
        implementation = known.get(file["path"]) or ImplementationOutcome(
            path=file["path"],
            kind=file["kind"],
            name=file["name"],
            quality_class=file["quality_class"],
            status=outcome.status if outcome.status != "passed" else "invalid_environment",
            reasons=outcome.reasons,
        )
        Verdict.objects.filter(
            submission=submission,
            path=file["path"],
            suite_version=version,
            machine_class=row.machine_class,
            current=True,
        ).update(current=False)
        Verdict.objects.create(
            submission=submission,
            attempt=row,
            suite_version=version,
            machine_class=row.machine_class,
            isolation=clean(outcome.isolation)[:20],
            tree_hash=file["tree_hash"],
            **_verdict_fields(implementation, file),
        )


def _verdict_fields(outcome: ImplementationOutcome, file: dict[str, str]) -> dict[str, object]:
    performance = outcome.performance
    fields: dict[str, object] = {
        # Kind, name and class are those that intake read from the header; an outcome cannot move a file to another track.
        "path": file["path"],
        "kind": file["kind"],
        "name": file["name"],
        "quality_class": file["quality_class"],
        "status": outcome.status,
        "speed": outcome.speed,
        "reasons": clean_tree(msgspec.to_builtins(outcome.reasons)),
        "next_steps": clean_tree(next_steps(outcome)),
        "tests": clean_tree(msgspec.to_builtins(outcome.tests)),
        "quality": clean_tree(outcome.quality),
        "meets": list(outcome.meets),
        "figures": clean_tree(outcome.figures),
        "summary": clean(outcome.summary),
        "qualifies": qualifies(outcome),
    }
    if performance is not None:
        fields["cases"] = clean_tree(msgspec.to_builtins(performance.cases))
        fields["against"] = clean(performance.against)[:120]
        if (speedup := performance.speedup) is not None:
            fields |= {
                "speedup": speedup.estimate,
                "speedup_low": speedup.low,
                "speedup_high": speedup.high,
                "speedup_level": speedup.level,
            }
        if (placed := performance.baseline_speedup) is not None:
            fields |= {
                "track_speedup": placed.estimate,
                "track_speedup_low": placed.low,
                "track_speedup_high": placed.high,
            }
    return fields


def _results(row: Attempt, outcome: ImplementationOutcome) -> list[Result]:
    if outcome.performance is None:
        return []
    rows = {}
    for pair in (*outcome.performance.pairs, *outcome.performance.sentinels):
        sides = (
            (Result.Side.BASE, pair.base, pair.base_samples),
            (Result.Side.HEAD, pair.head, pair.head_samples),
        )
        for side, medians, samples in sides:
            for case, seconds in medians.items():
                rows[case, pair.phase, pair.index, side] = Result(
                    attempt=row,
                    path=outcome.path[:300],
                    case=clean(case)[:200],
                    pair=pair.index,
                    phase=pair.phase,
                    order=pair.order,
                    side=side,
                    seconds=seconds,
                    samples=samples.get(case, []),
                )
    return list(rows.values())
