"""Asks the forge for its pull requests and takes in what no delivery told of. Safe to run at any time, any number of times."""

import logging

from swapbench.forge.contract import Forge, ForgeError, NoSuchPullRequest
from swapbench.intake.take_in import take_in, withdraw
from swapbench.submissions.models import PullRequest

log = logging.getLogger(__name__)


def reconcile(forge: Forge) -> int:
    """Takes in every open pull request, and notices those that were closed; returns how many could not be looked at."""
    failures = 0
    open_now = forge.open_pull_requests()
    numbers = {info.number for info in open_now}
    heads = dict(
        PullRequest.objects.filter(forge=forge.name, state=PullRequest.State.OPEN).values_list("number", "head_sha")
    )
    closed = [number for number in heads if number not in numbers]
    for info in open_now:
        try:
            take_in(forge, info)
        except ForgeError as error:
            failures += 1
            log.warning("Pull request %s is looked at again later: %s", info.number, error)
    for number in closed:
        try:
            take_in(forge, forge.pull_request(number))
        except NoSuchPullRequest:
            withdraw(forge, number)
        except ForgeError as error:
            failures += 1
            log.warning("Pull request %s is looked at again later: %s", number, error)
    return failures
