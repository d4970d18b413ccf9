"""Deals with recorded deliveries. What a payload says of a pull request is only a hint; the forge is asked what is so now."""

import logging
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from swapbench.forge.contract import Forge, ForgeError, NoSuchPullRequest
from swapbench.intake.commands import obey, read
from swapbench.intake.models import Delivery
from swapbench.intake.take_in import take_in, withdraw

log = logging.getLogger(__name__)

TRIES = 5
"""How often a delivery is tried while the forge cannot be asked; the reconcile poll takes up what it told of."""
COMMANDS_FOR = timedelta(days=1)
"""How long a comment is tried instead: no poll finds what a person asked for there."""
ACTIONS = ("opened", "reopened", "synchronize", "edited", "closed", "ready_for_review", "converted_to_draft", "labeled")


def process(forge: Forge, limit: int = 50) -> int:
    """Deals with what has been received, oldest first; returns how many deliveries were ended."""
    ended = 0
    for row in Delivery.objects.filter(forge=forge.name, state=Delivery.State.RECEIVED).order_by("id")[:limit]:
        try:
            if row.event == "issue_comment":
                ended += _comment(forge, row)
                continue
            state, note = _deal_with(forge, row)
        except ForgeError as error:
            Delivery.objects.filter(pk=row.pk, state=Delivery.State.RECEIVED).update(
                tries=F("tries") + 1, note=str(error)
            )
            if not _given_up(row):
                continue
            state, note = Delivery.State.FAILED, str(error)
        except Exception as error:
            # One delivery that nobody foresaw must not hold up the others.
            log.exception("Delivery %s could not be dealt with.", row.delivery)
            state, note = Delivery.State.FAILED, f"{type(error).__name__}: {error}"
        ended += _end(row, state, note)
    return ended


def _given_up(row: Delivery) -> bool:
    if row.event == "issue_comment":
        return row.received_at < timezone.now() - COMMANDS_FOR
    return row.tries + 1 >= TRIES


def _end(row: Delivery, state: str, note: str) -> int:
    """1 where this ended the delivery; 0 where another process did."""
    return Delivery.objects.filter(pk=row.pk, state=Delivery.State.RECEIVED).update(
        state=state, note=note, done_at=timezone.now()
    )


def _deal_with(forge: Forge, row: Delivery) -> tuple[str, str]:
    payload = row.payload
    if row.event == "pull_request":
        number = payload.get("number")
        if not isinstance(number, int) or payload.get("action") not in ACTIONS:
            return Delivery.State.IGNORED, f"The action {payload.get('action')!r} changes nothing here."
        return _look_again(forge, number, row.received_at)
    return Delivery.State.IGNORED, f"Nothing is done about {row.event!r}."


def _look_again(forge: Forge, number: int, told_at: datetime) -> tuple[str, str]:
    try:
        submission = take_in(forge, forge.pull_request(number), told_at)
    except NoSuchPullRequest as error:
        withdraw(forge, number)
        return Delivery.State.DONE, str(error)
    return Delivery.State.DONE, str(submission) if submission else "There is nothing to judge."


def _comment(forge: Forge, row: Delivery) -> int:
    """Obeys the command in a comment, once: what it does and that the delivery has ended are one transaction."""
    payload = row.payload
    issue, comment = payload.get("issue"), payload.get("comment")
    if payload.get("action") != "created" or not isinstance(issue, dict) or not isinstance(comment, dict):
        return _end(row, Delivery.State.IGNORED, "Only new comments are read.")
    if "pull_request" not in issue:
        return _end(row, Delivery.State.IGNORED, "It is a comment on an issue, not on a pull request.")
    user, number, text = comment.get("user"), issue.get("number"), comment.get("body")
    if not isinstance(user, dict) or not isinstance(number, int) or not isinstance(text, str):
        return _end(row, Delivery.State.IGNORED, "The comment has no author, number or text.")
    command = read(text)
    if command is None:
        return _end(row, Delivery.State.IGNORED, "It holds no command.")
    login = str(user.get("login", ""))
    maintains = forge.may_maintain(login)
    with transaction.atomic():
        ended = _end(row, Delivery.State.DONE, "")
        if ended:
            said = obey(forge.name, number, login, maintains, command)
            Delivery.objects.filter(pk=row.pk).update(note=said)
    return ended
