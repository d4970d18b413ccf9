"""The same code gets the same verdict, not another draw (DESIGN section 5, "Until lucky")."""

from django.utils import timezone

from swapbench.submissions import audit
from swapbench.submissions.attempts import new_token, next_round
from swapbench.submissions.models import Attempt, Submission, Verdict
from swapbench.submissions.policy import policy, suite_version
from swapbench.submissions.verdicts import OURS, worst

COPIED = [
    "isolation",
    "status",
    "speed",
    "speedup",
    "speedup_low",
    "speedup_high",
    "speedup_level",
    "against",
    "track_speedup",
    "track_speedup_low",
    "track_speedup_high",
    "reasons",
    "next_steps",
    "cases",
    "tests",
    "quality",
    "meets",
    "figures",
    "summary",
    "qualifies",
]


def reuse(submission: Submission) -> bool:
    """Copies earlier verdicts where every file has one on every machine class, against the same base. Else does nothing.

    Only verdicts of one's own pull requests count, so that nobody is given what another earned.
    """
    if not submission.files:
        return False
    version = suite_version()
    found: dict[str, list[tuple[dict[str, str], Verdict]]] = {}
    for machine_class in policy().machine_classes:
        for file in submission.files:
            earlier = (
                Verdict.objects.filter(
                    tree_hash=file["tree_hash"],
                    kind=file["kind"],
                    suite_version=version,
                    machine_class=machine_class,
                    submission__base_sha=submission.base_sha,
                    submission__pull_request__forge=submission.pull_request.forge,
                    submission__pull_request__author=submission.author,
                    reused_from__isnull=True,
                )
                .exclude(submission=submission)
                .exclude(status__in=[*OURS, Verdict.Status.INCONCLUSIVE])
                .first()
            )
            if earlier is None:
                return False
            found.setdefault(machine_class, []).append((file, earlier))
    now = timezone.now()
    for machine_class, pairs in found.items():
        attempt = Attempt.objects.create(
            submission=submission,
            suite_version=version,
            machine_class=machine_class,
            round=next_round(submission, machine_class),
            state=Attempt.State.FINISHED,
            status=worst(earlier.status for _, earlier in pairs),
            sentence="The same code was judged before; its verdict stands.",
            token=new_token(),
            started_at=now,
            finished_at=now,
        )
        for file, earlier in pairs:
            Verdict.objects.create(
                submission=submission,
                attempt=attempt,
                path=file["path"],
                kind=file["kind"],
                name=file["name"],
                quality_class=file["quality_class"],
                suite_version=version,
                machine_class=machine_class,
                tree_hash=file["tree_hash"],
                reused_from=earlier,
                **{name: getattr(earlier, name) for name in COPIED},
            )
    audit.note(audit.PLATFORM, "reused", "The same code was judged before; its verdict stands.", submission)
    return True
