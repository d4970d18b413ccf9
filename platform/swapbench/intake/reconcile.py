"""Asks the forge for its pull requests and takes in what no delivery told of. Safe to run at any time, any number of times."""

import logging
from collections.abc import Callable
from functools import partial

from swapbench.forge.contract import Forge, ForgeError, NoSuchPullRequest
from swapbench.intake.take_in import take_in, withdraw
from swapbench.submissions.models import PullRequest

log = logging.getLogger(__name__)


def reconcile(forge: Forge) -> int:
    """Takes in every open pull request, and notices those that were closed; returns how many could not be looked at."""
    open_now = forge.open_pull_requests()
    numbers = {info.number for info in open_now}
    known = PullRequest.objects.filter(forge=forge.name, state=PullRequest.State.OPEN)
    closed = [number for number in known.values_list("number", flat=True) if number not in numbers]
    looked = [_look(info.number, partial(take_in, forge, info)) for info in open_now]
    looked += [_look(number, partial(_closed, forge, number)) for number in closed]
    return looked.count(False)


def _closed(forge: Forge, number: int) -> None:
    try:
        take_in(forge, forge.pull_request(number))
    except NoSuchPullRequest:
        withdraw(forge, number)


def _look(number: int, act: Callable[[], object]) -> bool:
    try:
        act()
    except ForgeError as error:
        log.warning("Pull request %s is looked at again later: %s", number, error)
        return False
    except Exception:
        # One pull request that nobody foresaw must not hold up the others.
        log.exception("Pull request %s could not be taken in; it is looked at again later.", number)
        return False
    return True
