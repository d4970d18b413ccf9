"""`manage.py demo`: sample pull requests through the whole path on this machine."""

import json
import shutil
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from rich.console import Console
from rich.live import Live

from swapbench.demo import processes, watch
from swapbench.demo.samples import DemoError, Sample, open_forge, samples


class Command(BaseCommand):
    help = "Judge the sample pull requests, merge what qualifies, and keep the pages up until Ctrl-C."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--once", action="store_true", help="end when every sample has ended")
        parser.add_argument("--json", type=Path, metavar="FILE", help="write verdicts, stage times and reasons as JSON")
        parser.add_argument(
            "--fresh", action="store_true", help="start over: forget the database, the forge and the queues"
        )
        parser.add_argument("--port", type=int, default=8000, help="port of the pages (default: 8000)")

    def handle(self, *_: Any, **options: Any) -> None:
        console = Console()
        try:
            self._run(console, options)
        except DemoError as error:
            raise CommandError(str(error)) from None
        except KeyboardInterrupt:
            console.print("\nEnding every process ...")

    def _run(self, console: Console, options: dict[str, Any]) -> None:
        if options["fresh"]:
            forget()
        if not options["once"]:
            processes.check_port(options["port"])
        call_command("migrate", verbosity=0, interactive=False)
        pulls = samples()
        with processes.Processes(settings.VAR / "log") as running:
            if not options["once"]:
                running.start("web", processes.web(options["port"]))
            open_forge(settings.SWAPBENCH_LOCAL_FORGE, pulls)
            running.start("control", processes.control())
            running.start("worker", processes.judge())
            self._watch(console, pulls, running, options)
            if not options["once"]:
                console.print(f"\nThe pages stay at [underline]http://127.0.0.1:{options['port']}/[/] until Ctrl-C.")
                while True:
                    time.sleep(1)
                    _check_alive(running)

    def _watch(
        self, console: Console, pulls: list[Sample], running: processes.Processes, options: dict[str, Any]
    ) -> None:
        began = time.monotonic()
        address = f"http://127.0.0.1:{options['port']}/" if not options["once"] else "no pages with --once"
        first: float | None = None
        with Live(console=console, refresh_per_second=4, transient=True) as screen:
            while True:
                found = watch.views(pulls)
                elapsed = time.monotonic() - began
                if first is None and any(view.verdicts for view in found):
                    first = elapsed
                screen.update(watch.live(found, address, elapsed))
                if watch.settled(found):
                    break
                _check_alive(running)
                time.sleep(0.5)
        elapsed = time.monotonic() - began
        console.print(watch.verdict_table(found))
        when = f", the first verdict after {first:.0f} s" if first is not None else ""
        console.print(f"All {len(found)} ended after {elapsed:.0f} s{when}.")
        result = watch.report(found, elapsed, first)
        if options["json"]:
            options["json"].write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        if options["once"] and not result["as_expected"]:
            raise CommandError("Not every sample got the verdict that it should.")


def _check_alive(running: processes.Processes) -> None:
    for name in running.dead():
        raise DemoError(f"The process '{name}' has ended. The end of {running.logs / name}.log:\n{running.tail(name)}")


def forget() -> None:
    """Removes what earlier runs left: forge, mirrors, broker, and every row of the database."""
    for folder in ("broker", "worker", "mirror.git", "log"):
        shutil.rmtree(settings.VAR / folder, ignore_errors=True)
    shutil.rmtree(settings.SWAPBENCH_LOCAL_FORGE, ignore_errors=True)
    database = settings.DATABASES["default"]
    if database["ENGINE"].endswith("sqlite3"):
        for suffix in ("", "-wal", "-shm"):
            Path(f"{database['NAME']}{suffix}").unlink(missing_ok=True)
    else:
        call_command("migrate", verbosity=0, interactive=False)
        call_command("flush", verbosity=0, interactive=False)
