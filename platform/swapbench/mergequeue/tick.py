"""One turn of the merge queue, worked out anew from the database each time, so that a restart is no special case.

Git is asked outside transactions. Each decision is a short transaction under the branch's row, in which the state that it was
made for is checked; that one branch has one live build is a constraint of the database, and that the branch moves from
where it was expected is checked by the forge's own compare-and-set.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from django.db import IntegrityError, transaction
from django.utils import timezone

from swapbench.forge.contract import Forge, ForgeError, NoSuchPullRequest, NotFastForward
from swapbench.forge.mirror import GitError, Mirror, mirror
from swapbench.intake.examine import names_at
from swapbench.intake.take_in import take_in, withdraw
from swapbench.mergequeue.enter import enter, qualified
from swapbench.mergequeue.events import say
from swapbench.mergequeue.models import BranchState, Build, QueueEntry, build_ref
from swapbench.submissions import attempts, audit
from swapbench.submissions.models import Approval, Attempt, FileOwner, PullRequest, Submission
from swapbench.submissions.policy import policy
from swapbench.submissions.text import clean
from swapbench.submissions.verdicts import OURS
from workers.protocol import ProtocolError, decode_outcome

log = logging.getLogger(__name__)

LIVE_BUILD = (Build.State.TESTING, Build.State.PASSED)
BUILDS_LOST_AT_MOST = 3
"""Builds of one entry since it entered that could not be tested through our fault, before a maintainer is asked."""


class Stale(Exception):
    """What was decided on has changed since; the next turn decides anew."""


def tick(forge: Forge, name: str) -> None:
    """Does what can be done now for the branch `name`. Raises ForgeError where the forge cannot be asked."""
    branch, _ = BranchState.objects.get_or_create(forge=forge.name, name=name)
    tip = forge.branch_tip(name)
    BranchState.objects.filter(pk=branch.pk).update(tip_sha=tip, ticked_at=timezone.now())
    branch.tip_sha = tip
    try:
        enter(branch)
        build = branch.builds.filter(state__in=LIVE_BUILD).first()
        if build is not None:
            _advance(forge, branch, build, tip)
            build = branch.builds.filter(state__in=LIVE_BUILD).first()
        _leave(branch)
        if build is None and not branch.held:
            _build_next(forge, branch, forge.branch_tip(name))
    except Stale:
        log.info("The queue of %s changed under way; the next turn goes on.", name)
    except GitError as error:
        raise ForgeError(str(error)) from None


@contextmanager
def _locked(branch: BranchState) -> Iterator[BranchState]:
    """A short transaction under the branch's row."""
    with transaction.atomic():
        yield BranchState.objects.select_for_update().get(pk=branch.pk)


def _leave(branch: BranchState) -> None:
    """Entries whose pull request has moved on, was closed or lost its verdict leave."""
    entries = branch.entries.filter(state=QueueEntry.State.WAITING).select_related("submission__pull_request")
    for entry in entries:
        if (why := _no_longer(entry)) is not None:
            _end_entry(branch, entry, QueueEntry.State.WAITING, why)


def _no_longer(entry: QueueEntry) -> str | None:
    """Why an entry may not be merged any more; None where it may."""
    submission, pull_request = entry.submission, entry.submission.pull_request
    if pull_request.state != PullRequest.State.OPEN:
        return f"The pull request is {pull_request.get_state_display()}."
    if pull_request.head_sha != entry.head_sha:
        return f"A newer push, {pull_request.head_sha[:12]}, took its place."
    if pull_request.base_ref != entry.branch.name:
        return f"The pull request now goes to {pull_request.base_ref}."
    if submission.state != Submission.State.JUDGED or not qualified(submission):
        return "It no longer has verdicts that qualify."
    return None


def _end_entry(branch: BranchState, entry: QueueEntry, before: str, sentence: str) -> None:
    with _locked(branch):
        left = QueueEntry.objects.filter(pk=entry.pk, state=before).update(
            state=QueueEntry.State.LEFT, sentence=sentence, ended_at=timezone.now()
        )
        if not left:
            raise Stale
        say(branch, "left", f"{entry.submission.pull_request} left the queue: {sentence}", entry)


def approvals_missing(entry: QueueEntry) -> int:
    """How many maintainers must still approve the entry's SHA before it is merged."""
    needed = policy().merge_approvals
    if entry.submission.outside:
        needed = max(needed, 1)  # Files outside the slots are never merged unread, whatever policy says.
    given = entry.submission.approvals.filter(purpose=Approval.Purpose.MERGE, head_sha=entry.head_sha)
    return max(0, needed - given.values("by").distinct().count())


def _not_yet(entry: QueueEntry) -> str | None:
    """What an entry that may be merged still waits for; None where it is ready."""
    if entry.submission.pull_request.draft:
        return "It waits until the pull request is no draft any more."
    missing = approvals_missing(entry)
    if not missing:
        return None
    return f"It waits for {'a maintainer' if missing == 1 else f'{missing} maintainers'} to approve it."


# --- A build under way -----------------------------------------------------------------------------------------------


def _advance(forge: Forge, branch: BranchState, build: Build, tip: str) -> None:
    if build.state == Build.State.PASSED and (tip == build.merge_sha or _is_merged(forge, branch, build)):
        _merged(forge, branch, build)  # It was fast-forwarded, and the process ended before that was written down.
        return
    merges = build.state == Build.State.PASSED and not branch.held
    if merges:
        _look_again(forge, build)
    entries = list(build.entries.select_related("submission__pull_request", "branch"))
    for entry in entries:
        if (why := _no_longer(entry) or _not_yet(entry)) is not None:
            _abandon(forge, branch, build, f"{entry.submission.pull_request} can no longer be merged: {why}")
            return
    if tip != build.base_sha:
        _abandon(forge, branch, build, f"{branch.name} moved to {tip[:12]}; the merge result is made anew.")
    elif build.state == Build.State.TESTING:
        _judge_build(forge, branch, build, entries)
    elif merges and BranchState.objects.filter(pk=branch.pk, held=False).exists():
        _fast_forward(forge, branch, build)


def _look_again(forge: Forge, build: Build) -> None:
    """Takes in what the forge says now of the pull requests of a build: what the poll has not seen yet is not merged over."""
    for number in build.entries.values_list("submission__pull_request__number", flat=True):
        try:
            take_in(forge, forge.pull_request(number))
        except NoSuchPullRequest:
            withdraw(forge, number)


def _judge_build(forge: Forge, branch: BranchState, build: Build, entries: Sequence[QueueEntry]) -> None:
    if build.attempts.filter(state__in=Attempt.LIVE).exists():
        return
    newest: dict[str, Attempt] = {}
    for attempt in build.attempts.order_by("n"):
        newest[attempt.machine_class] = attempt
    ours = [row for row in newest.values() if row.state != Attempt.State.FINISHED or row.status in OURS]
    bad = [row for row in newest.values() if row not in ours and row.status != "passed"]
    if bad:
        _fail(forge, branch, build, entries, _why(bad[0]))
    elif ours or not newest:
        lost = "the machine did not get it done"
        why = ours[0].failure if ours and ours[0].failure else lost
        _abandon(forge, branch, build, f"The merge result could not be tested, through our fault: {why}", ours=True)
    else:
        with _locked(branch):
            if not Build.objects.filter(pk=build.pk, state=Build.State.TESTING).update(state=Build.State.PASSED):
                raise Stale
            say(branch, "passed", f"The merge result {build.merge_sha[:12]} passed.", build=build)
        build.state = Build.State.PASSED
        _advance(forge, branch, build, forge.branch_tip(branch.name))


def _why(attempt: Attempt) -> str:
    """Why a merge result did not pass, as the judge says it."""
    try:
        outcome = decode_outcome(attempt.outcome)
    except ProtocolError:
        return f"it ended as {attempt.status}."
    reasons = [*outcome.reasons, *(reason for found in outcome.implementations for reason in found.reasons)]
    sentences = [reason.sentence for reason in reasons]
    return sentences[0] if sentences else f"it ended as {attempt.status}."


def _fail(forge: Forge, branch: BranchState, build: Build, entries: Sequence[QueueEntry], why: str) -> None:
    with _locked(branch):
        _end_build(
            branch, build, Build.State.FAILED, f"The merge result {build.merge_sha[:12]} failed: {why}", "failed"
        )
        for entry in entries:
            if len(entries) == 1:
                sentence = f"Merged with {branch.name}, it failed: {why}"
                state, ended = QueueEntry.State.LEFT, timezone.now()
            else:
                # Bisection: with batches of at most four, one by one finds the culprit in as many builds as halving.
                sentence = "It was in a build that failed, and is now tested alone."
                state, ended = QueueEntry.State.WAITING, None
            QueueEntry.objects.filter(pk=entry.pk, state=QueueEntry.State.BUILDING).update(
                state=state, sentence=clean(sentence), ended_at=ended, alone=len(entries) > 1
            )
            say(
                branch,
                "left" if ended else "waits",
                f"{entry.submission.pull_request}: {clean(sentence)}",
                entry,
                build,
            )
    _drop(forge, build.ref)


def _abandon(forge: Forge, branch: BranchState, build: Build, why: str, ours: bool = False) -> None:
    """Ends a build without a verdict; its entries go back to wait, or leave where it cannot be tested at all."""
    with _locked(branch):
        _end_build(branch, build, Build.State.ABANDONED, why, "unfit" if ours else "abandoned")
        for entry in build.entries.filter(state=QueueEntry.State.BUILDING):
            lost = branch.events.filter(build__entries=entry, kind="unfit", at__gte=entry.entered_at).count()
            gives_up = ours and lost >= BUILDS_LOST_AT_MOST
            QueueEntry.objects.filter(pk=entry.pk, state=QueueEntry.State.BUILDING).update(
                state=QueueEntry.State.LEFT if gives_up else QueueEntry.State.WAITING,
                sentence=f"{why} A maintainer can put it back." if gives_up else why,
                ended_at=timezone.now() if gives_up else None,
            )
    _drop(forge, build.ref)


def _end_build(branch: BranchState, build: Build, state: str, sentence: str, kind: str) -> None:
    """Inside a transaction. Raises Stale where another process ended it."""
    ended = Build.objects.filter(pk=build.pk, state__in=LIVE_BUILD).update(
        state=state, sentence=clean(sentence), ended_at=timezone.now()
    )
    if not ended:
        raise Stale
    Attempt.objects.filter(build=build, state__in=Attempt.LIVE).update(
        state=Attempt.State.CANCELLED,
        failure_kind=Attempt.Failure.CANCELLED,
        failure=clean(sentence),
        finished_at=timezone.now(),
    )
    say(branch, kind, clean(sentence), build=build)


def _drop(forge: Forge, ref: str) -> None:
    try:
        forge.drop(ref)
    except ForgeError as error:
        log.warning("%s stays behind: %s", ref, error)


# --- Merging ---------------------------------------------------------------------------------------------------------


def _fast_forward(forge: Forge, branch: BranchState, build: Build) -> None:
    try:
        forge.fast_forward(branch.name, build.base_sha, build.merge_sha)
    except NotFastForward as error:
        _abandon(forge, branch, build, f"{error} The merge result is made anew.")
        return
    _merged(forge, branch, build)


def _is_merged(forge: Forge, branch: BranchState, build: Build) -> bool:
    repository = mirror()
    (tip,) = repository.fetch(forge.repository(), [f"refs/heads/{branch.name}"], forge.fetch_environment())
    return repository.has_commit(build.merge_sha) and repository.is_ancestor(build.merge_sha, tip)


def _merged(forge: Forge, branch: BranchState, build: Build) -> None:
    now = timezone.now()
    with _locked(branch):
        sentence = f"{branch.name} is now at {build.merge_sha[:12]}."
        _end_build(branch, build, Build.State.MERGED, sentence, "moved")
        for entry in build.entries.select_related("submission__pull_request"):
            submission, pull_request = entry.submission, entry.submission.pull_request
            QueueEntry.objects.filter(pk=entry.pk).update(
                state=QueueEntry.State.MERGED, sentence="It is merged.", ended_at=now, merge_sha=build.merge_sha
            )
            PullRequest.objects.filter(pk=pull_request.pk, head_sha=entry.head_sha).update(
                state=PullRequest.State.MERGED
            )
            for file in submission.files:
                if file["status"] == "added":
                    FileOwner.objects.get_or_create(
                        path=file["path"],
                        defaults={"author": pull_request.author, "author_email": pull_request.author_email},
                    )
            say(branch, "merged", f"{pull_request} was merged as {build.merge_sha[:12]}.", entry, build)
            audit.note(audit.PLATFORM, "merged", f"{pull_request} was merged as {build.merge_sha[:12]}.", submission)
        BranchState.objects.filter(pk=branch.pk).update(tip_sha=build.merge_sha)
    _drop(forge, build.ref)


# --- The next build --------------------------------------------------------------------------------------------------


def _build_next(forge: Forge, branch: BranchState, tip: str) -> None:
    chosen = _choose(branch)
    if not chosen:
        return
    repository = mirror()
    (fetched,) = repository.fetch(forge.repository(), [f"refs/heads/{branch.name}"], forge.fetch_environment())
    if fetched != tip:
        raise Stale
    commit = tip
    built: list[QueueEntry] = []
    for entry in chosen:
        if (why := _cannot_merge(repository, commit, entry)) is not None:
            _end_entry(branch, entry, QueueEntry.State.WAITING, why)
            continue
        tree, _ = repository.merge_tree(commit, entry.head_sha)
        pull_request = entry.submission.pull_request
        message = f"Merge pull request {pull_request.number}: {pull_request.title}\n\nBy {pull_request.author}.\n"
        commit = repository.commit_tree(tree, [commit, entry.head_sha], message)
        built.append(entry)
    if not built:
        return
    ref = build_ref(commit)
    repository.keep(ref, commit)
    forge.keep(ref, commit, repository.path)
    try:
        _open_build(branch, tip, commit, built)
    except Stale:
        if not Build.objects.filter(merge_sha=commit, state__in=LIVE_BUILD).exists():
            _drop(forge, ref)
        raise


def _open_build(branch: BranchState, tip: str, commit: str, built: Sequence[QueueEntry]) -> None:
    """Has a merge result tested. Raises Stale where that is no longer to be."""
    try:
        with _locked(branch) as locked:
            if locked.held:
                raise Stale
            build = Build.objects.create(branch=branch, base_sha=tip, merge_sha=commit)
            build.entries.set(built)
            taken = QueueEntry.objects.filter(
                pk__in=[entry.pk for entry in built], state=QueueEntry.State.WAITING
            ).update(state=QueueEntry.State.BUILDING, sentence=f"Its merge with {branch.name} is being tested.")
            if taken != len(built):
                raise Stale
            attempts.start_build(build, policy().build_suites)
            names = ", ".join(str(entry.submission.pull_request) for entry in built)
            say(branch, "building", f"{names}: the merge result {commit[:12]} is being tested.", build=build)
    except IntegrityError:
        raise Stale from None  # Another process started a build.


def _choose(branch: BranchState) -> list[QueueEntry]:
    """The entries of the next build: those whose turn it is, as many as policy allows, touching different files."""
    chosen: list[QueueEntry] = []
    paths: set[str] = set()
    names: set[tuple[str, str]] = set()
    waiting = branch.entries.filter(state=QueueEntry.State.WAITING).select_related("submission__pull_request", "branch")
    for entry in waiting:
        if (why := _not_yet(entry)) is not None:
            QueueEntry.objects.filter(pk=entry.pk, state=QueueEntry.State.WAITING).update(sentence=why)
            continue
        own = {file["path"] for file in entry.submission.files}
        called = {(file["kind"], file["name"]) for file in entry.submission.files}
        if chosen and (entry.alone or entry.submission.outside or own & paths or called & names):
            continue
        chosen.append(entry)
        paths |= own
        names |= called
        if entry.alone or entry.submission.outside or len(chosen) >= policy().batch_size:
            break
    return chosen


def _cannot_merge(repository: Mirror, tip: str, entry: QueueEntry) -> str | None:
    """Why an entry cannot be merged onto `tip` as it was judged; None where it can."""
    name, submission = entry.branch.name, entry.submission
    if not repository.has_commit(entry.head_sha):
        return "Its head can no longer be read; push again."
    if not repository.is_ancestor(submission.base_sha, tip):
        return f"It was judged on {submission.base_sha[:12]}, which is not in {name}. Merge {name} into your branch, and push."
    tree, conflicts = repository.merge_tree(tip, entry.head_sha)
    if conflicts:
        return f"It conflicts with {name} in {', '.join(conflicts[:5])}. Merge {name} into your branch, and push."
    looked_at = {file["path"] for file in (*submission.files, *submission.outside)} | set(submission.documents)
    for change in repository.changes(tip, tree):
        if change.shown not in looked_at:
            # What was merged since moved the common ancestor, as where head takes back what it once built on.
            return f"Merged now, it would also change {change.shown}, which nobody looked at. Merge {name} into your branch, and push."
    for file in submission.files:
        path = file["path"]
        if repository.blob_at(tip, path) != repository.blob_at(submission.base_sha, path):
            return f"{name} has changed {path} since it was judged. Merge {name} into your branch, and push."
        holder = names_at(repository, tip, file["kind"]).get(file["name"], path)
        if holder != path:
            return f"The name {file['name']!r} was taken by {holder} meanwhile. Choose another, and push."
    return None
