"""`manage.py control`: the scheduler, and the Celery worker of the control queue beside it."""

import logging
import random
import signal
import threading
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import close_old_connections

from swapbench.control.processes import Child, python_module
from swapbench.control.turn import Clock, turn
from workers.protocol import CONTROL_QUEUE

log = logging.getLogger(__name__)


class Command(BaseCommand):
    requires_system_checks = ()  # They import every page, which takes seconds.
    help = "Run the control plane: intake, dispatch, leases, merge queue and reports, until it is stopped."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--turn", type=float, default=1.0, help="seconds between turns (default: %(default)s)")
        parser.add_argument("--once", action="store_true", help="do one turn and end, without the Celery worker")

    def handle(self, *, turn: float, once: bool, **options: Any) -> None:
        from swapbench.celery import send_job

        clock = Clock()
        if once:
            clock.started = float("-inf")
            _turn(clock, send_job)
            return
        stop = threading.Event()
        for which in (signal.SIGTERM, signal.SIGINT):
            signal.signal(which, lambda *_: stop.set())
        listener = Child(
            "control worker",
            python_module(
                "celery", "-A", "swapbench.celery", "worker", "-Q", CONTROL_QUEUE, "--pool", "solo", "-l", "warning"
            ),
        )
        try:
            while not stop.is_set():
                began = time.monotonic()
                close_old_connections()
                _turn(clock, send_job)
                if listener.ended:
                    log.warning(
                        "The control worker ended with status %s; it is started again.", listener.process.returncode
                    )
                    listener.restart()
                # Jitter keeps several control processes, which are allowed, from turning in step.
                stop.wait(max(0.05, turn * random.uniform(0.8, 1.2) - (time.monotonic() - began)))
        finally:
            listener.end()


_turn = turn
