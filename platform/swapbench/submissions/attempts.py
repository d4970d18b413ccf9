"""Makes attempts: the first ones of a submission or build, and those that replace a lost one."""

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

from django.db import IntegrityError, transaction
from django.db.models import Max

from swapbench.submissions import tries
from swapbench.submissions.models import Attempt, Submission
from swapbench.submissions.policy import policy, suite_version
from workers.protocol import SUITES, SuiteName

if TYPE_CHECKING:
    from swapbench.mergequeue.models import Build


INTAKE_SHARE = 1 / 30
"""Of the deadline, which intake may use up: half a minute of the 15 (DESIGN section 5)."""


def seconds(attempt: Attempt) -> float:
    """How long an attempt may run, in seconds.

    The deadline counts from the push: what intake took is gone, up to its share, so that the stages keep theirs. The clock
    stands still while the attempt waits for a worker, or its submission for a maintainer.
    """
    whole = policy().deadline_seconds
    submission = attempt.submission
    if submission is None:
        return whole
    intake = (submission.created_at - submission.arrived_at).total_seconds()
    return whole - min(max(0.0, intake), whole * INTAKE_SHARE)


def new_token() -> str:
    """A token that only the worker that is given the attempt learns."""
    return secrets.token_hex(32)


def next_round(submission: Submission, machine_class: str) -> int:
    """The round that attempts with the present suites are made in from now on, from 1."""
    same = submission.attempts.filter(suite_version=suite_version(), machine_class=machine_class)
    return (same.aggregate(Max("round"))["round__max"] or 0) + 1


def start(submission: Submission) -> list[Attempt]:
    """Queues a new round of attempts of a submission, one per machine class; none where one is live already.

    Called inside the transaction that sets the submission to judging.
    """
    version = suite_version()
    made = []
    most_tries = 1
    for machine_class in policy().machine_classes:
        same = submission.attempts.filter(suite_version=version, machine_class=machine_class)
        if same.filter(state__in=Attempt.LIVE).exists():
            continue
        number = tries.number(submission, machine_class)
        most_tries = max(most_tries, number)
        made.append(
            Attempt.objects.create(
                submission=submission,
                suite_version=version,
                machine_class=machine_class,
                round=next_round(submission, machine_class),
                suites=list(SUITES),
                alpha=tries.alpha(number),
                token=new_token(),
            )
        )
    Submission.objects.filter(pk=submission.pk).update(tries=most_tries)
    return made


def start_build(build: "Build", suites: Sequence[SuiteName]) -> list[Attempt]:
    """Queues the attempts that test a merge result, one per machine class."""
    return [
        Attempt.objects.create(
            build=build,
            suite_version=suite_version(),
            machine_class=machine_class,
            suites=list(suites),
            alpha=policy().alpha,
            token=new_token(),
        )
        for machine_class in policy().machine_classes
    ]


def hold_submission(attempt: Attempt) -> None:
    """Keeps everybody else off the submission of an attempt that is about to end, until the transaction has ended.

    Else two attempts that end at the same moment each see the other one live and none settles the submission; or one is
    replaced while a newer push calls the submission off.
    """
    if attempt.submission_id is not None:
        Submission.objects.select_for_update().get(pk=attempt.submission_id)


def replace(lost: Attempt) -> Attempt | None:
    """Queues the attempt that takes the place of a lost one; None where policy allows no more of them.

    Two processes that replace the same one make one between them.
    """
    if lost.n > policy().replacements:
        return None
    try:
        with transaction.atomic():
            return Attempt.objects.create(
                submission=lost.submission,
                build=lost.build,
                suite_version=lost.suite_version,
                machine_class=lost.machine_class,
                round=lost.round,
                n=lost.n + 1,
                suites=lost.suites,
                alpha=lost.alpha,
                token=new_token(),
            )
    except IntegrityError:
        return Attempt.objects.get(
            submission=lost.submission,
            build=lost.build,
            suite_version=lost.suite_version,
            machine_class=lost.machine_class,
            round=lost.round,
            n=lost.n + 1,
        )
