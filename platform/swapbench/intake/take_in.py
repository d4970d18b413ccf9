"""From a pull request as the forge describes it to a Submission: judged, waiting, or refused with a sentence."""

from dataclasses import asdict
from datetime import datetime

from django.db import IntegrityError, transaction
from django.utils import timezone

from swapbench.forge.contract import Forge, ForgeError, PullRequestInfo
from swapbench.forge.mirror import GitError, Mirror, mirror
from swapbench.intake.examine import Examination, Note, examine
from swapbench.submissions import audit, judge
from swapbench.submissions.models import FileOwner, PullRequest, Submission
from swapbench.submissions.policy import ControlPolicy, policy
from swapbench.submissions.supersede import cancel, supersede
from swapbench.submissions.text import clean, clean_tree


def take_in(forge: Forge, info: PullRequestInfo, arrived_at: datetime | None = None) -> Submission | None:
    """The submission of the pull request's head; made if it is new, None where there is nothing to judge yet.

    `arrived_at` is when the forge told of it, by default now. Taking the same in again changes nothing. Raises ForgeError where the head cannot be fetched, to be tried again later.
    """
    arrived_at = arrived_at or timezone.now()
    pull_request, reopened = _update(forge, info)
    if info.state != "open":
        _call_off(pull_request, f"The pull request is {info.state}.")
        return None
    if info.draft:
        return None
    known = pull_request.submissions.filter(head_sha=info.head_sha).first()
    if known is not None:
        supersede(pull_request, info.head_sha)
        if known.state == Submission.State.SUPERSEDED or (reopened and _called_off_by_itself(known)):
            _revive(known)
        return known
    rules = policy()
    found = _look(forge, info, rules)
    submission = _submission(pull_request, info, found, rules)
    submission.arrived_at = arrived_at
    try:
        with transaction.atomic():
            if not PullRequest.objects.filter(pk=pull_request.pk, head_sha=info.head_sha).exists():
                return None  # Another process saw a newer push meanwhile, and takes that in.
            supersede(pull_request, info.head_sha)
            begins = submission.state == Submission.State.JUDGING
            if begins:
                submission.state = Submission.State.WAITING
            submission.save(force_insert=True)
            if begins:
                judge.begin(submission, Submission.State.WAITING)
            audit.note(audit.PLATFORM, "taken in", _sentence(submission), submission)
    except IntegrityError:
        # Another process took it in between.
        return pull_request.submissions.get(head_sha=info.head_sha)
    return submission


def withdraw(forge: Forge, number: int) -> None:
    """A pull request that the forge no longer has: what was going on for it is called off."""
    for row in PullRequest.objects.filter(forge=forge.name, number=number, state=PullRequest.State.OPEN):
        PullRequest.objects.filter(pk=row.pk).update(state=PullRequest.State.CLOSED)
        _call_off(row, "The forge no longer has the pull request.")


def _call_off(pull_request: PullRequest, why: str) -> None:
    for submission in pull_request.submissions.filter(state__in=[Submission.State.WAITING, Submission.State.JUDGING]):
        cancel(submission, audit.PLATFORM, why)


def _called_off_by_itself(submission: Submission) -> bool:
    """Whether it ended with its pull request; what a person cancelled does not go on because that is opened again."""
    if submission.state != Submission.State.CANCELLED:
        return False
    event = submission.audit_events.filter(action=Submission.State.CANCELLED).first()
    return event is not None and event.actor == audit.PLATFORM


def _revive(submission: Submission) -> None:
    """A head that was left is the head again: it goes on where it was."""
    with transaction.atomic():
        if judge.may_run(submission):
            judge.begin(submission, submission.state)
        else:
            judge.wait_again(submission, submission.state)


def _update(forge: Forge, info: PullRequestInfo) -> tuple[PullRequest, bool]:
    """The pull request's row, brought up to date, and whether it was open again after it had been closed."""
    described = {
        "title": clean(info.title)[:300],
        "author": clean(info.author)[:120],
        "author_email": clean(info.author_email)[:254],
        "trusted_author": info.trusted_author,
        "head_sha": info.head_sha,
        "head_ref": info.head_ref,
        "base_ref": clean(info.base_ref)[:300],
        "draft": info.draft,
        "state": info.state,
        "url": info.url[:500],
        "labels": clean_tree(list(info.labels)),
    }
    row, made = PullRequest.objects.get_or_create(forge=forge.name, number=info.number, defaults=described)
    reopened = not made and row.state != PullRequest.State.OPEN and info.state == "open"
    if not made and any(getattr(row, name) != value for name, value in described.items()):
        for name, value in described.items():
            setattr(row, name, value)
        row.save(update_fields=[*described, "updated_at"])
    return row, reopened


def _look(forge: Forge, info: PullRequestInfo, rules: ControlPolicy) -> Examination:
    repository = mirror()
    branch = info.base_ref
    try:
        tip, head = repository.fetch(
            forge.repository(), [f"refs/heads/{branch}", info.head_ref], forge.fetch_environment()
        )
        if head != info.head_sha:
            raise ForgeError(f"Pull request {info.number} moved on to {head[:12]} while it was looked at.")
        # Judging and merging need these objects later, when the pull request may have moved on.
        repository.keep(f"refs/swapbench/heads/{head}", head)
        return examine(
            repository,
            tip,
            head,
            branch,
            lambda path: owner_other_than(repository, tip, path, info.author, info.author_email),
            rules.max_files,
            rules.max_changes,
        )
    except GitError as error:
        raise ForgeError(str(error)) from None


def owner_other_than(repository: Mirror, tip: str, path: str, author: str, email: str) -> str:
    """Whose the file at `path` is, where it is not the author's: as recorded at its merge, else who first added it."""
    recorded = FileOwner.objects.filter(path=path).first()
    if recorded is not None:
        name, mail = recorded.author, recorded.author_email
    else:
        name, mail = repository.first_author(tip, path)
    if name == author and mail == email:
        return ""
    return clean(name) or "nobody known"


def _submission(
    pull_request: PullRequest, info: PullRequestInfo, found: Examination, rules: ControlPolicy
) -> Submission:
    reasons = [asdict(note) for note in found.refusals]
    submission = Submission(
        pull_request=pull_request,
        head_sha=info.head_sha,
        base_sha=found.base_sha,
        files=clean_tree(found.files),
        outside=clean_tree(found.outside),
        documents=clean_tree(found.documents),
    )
    if found.refusals:
        submission.state = Submission.State.REFUSED
    elif found.outside:
        submission.state = Submission.State.WAITING
        submission.approval_needed = True
        reasons = [asdict(_outside(found))]
    elif not found.files:
        submission.state = Submission.State.WAITING
        submission.approval_needed = True
        sentence = "It changes documents only, so there is nothing to judge."
        reasons = [asdict(Note("nothing_to_judge", sentence, "A maintainer will read it and merge it by hand."))]
    elif rules.first_time_needs_approval and not info.trusted_author and not _merged_before(pull_request):
        submission.state = Submission.State.WAITING
        submission.approval_needed = True
        sentence = f"This is the first contribution of {info.author}, so a maintainer looks at it before it is run."
        step = "Wait for a maintainer; the approval holds for this push only, so push again only if you must."
        reasons = [asdict(Note("first_time", sentence, step))]
    else:
        submission.state = Submission.State.JUDGING
    submission.reasons = clean_tree(reasons)
    return submission


def _outside(found: Examination) -> Note:
    first = found.outside[0]
    more = f", and {len(found.outside) - 1} more" if len(found.outside) > 1 else ""
    return Note(
        "outside_the_slots",
        f"It changes {first['path']} ({first['why']}){more}. Such a change is never judged automatically.",
        "Wait for a maintainer, or leave these files out: one new file in a slot folder is judged at once.",
        first["path"],
    )


def _merged_before(pull_request: PullRequest) -> bool:
    return PullRequest.objects.filter(
        forge=pull_request.forge, author=pull_request.author, state=PullRequest.State.MERGED
    ).exists()


def _sentence(submission: Submission) -> str:
    if submission.reasons:
        return f"{submission}: {submission.get_state_display()}. {submission.reasons[0]['sentence']}"
    return f"{submission}: {len(submission.files)} slot file(s) to be judged."
