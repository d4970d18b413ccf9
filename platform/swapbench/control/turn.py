"""One turn of the control loop. Each step works from the database alone, and a step that fails does not hold up the others."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError

from swapbench.forge.chosen import forge
from swapbench.forge.contract import Forge, ForgeError
from swapbench.intake.deliveries import process
from swapbench.intake.reconcile import reconcile
from swapbench.mergequeue.tick import tick
from swapbench.reports.publish import publish
from swapbench.submissions.dispatch import Send, dispatch
from swapbench.submissions.policy import policy
from swapbench.submissions.reaper import reap

log = logging.getLogger(__name__)

REPORT_SECONDS = 5.0
LOCAL_POLL_SECONDS = 4.0
"""A local forge sends no deliveries, and costs little to ask; still, attempts on this machine measure time."""


@dataclass
class Clock:
    """When each step that does not run at every turn ran last, by the monotonic clock in seconds."""

    started: float = field(default_factory=time.monotonic)
    polled: float = float("-inf")
    reported: float = float("-inf")

    def due(self, name: str, every: float) -> bool:
        now = time.monotonic()
        if now - getattr(self, name) < every:
            return False
        setattr(self, name, now)
        return True


def turn(clock: Clock, send: Send) -> None:
    """Intake, reaping, the queue, dispatch and reports, in this order."""
    chosen = forge()
    rules = policy()
    _step("deliveries", lambda: process(chosen))
    if clock.due("polled", LOCAL_POLL_SECONDS if chosen.name == "local" else rules.poll_seconds):
        _step("reconcile", lambda: reconcile(chosen))
    if time.monotonic() - clock.started > rules.lease_seconds / 3:
        # While this process was away, heartbeats piled up; they are taken before anybody is called silent.
        _step("reap", reap)
    _step("queue", lambda: _queue(chosen))
    _step("dispatch", lambda: dispatch(send))
    if clock.due("reported", REPORT_SECONDS):
        _step("reports", lambda: publish(chosen))


def _queue(chosen: Forge) -> None:
    tick(chosen, settings.SWAPBENCH_BRANCH)


def _step(name: str, act: Callable[[], object]) -> None:
    try:
        act()
    except ImproperlyConfigured:
        raise
    except (ForgeError, OperationalError) as error:
        log.warning("%s: tried again at the next turn: %s", name, error)
    except Exception:
        log.exception("%s failed; the other steps go on, and it is tried again at the next turn.", name)
