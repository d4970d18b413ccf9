"""Writes the pairs of identical code that attempts have measured as a bank for `swapbench calibrate --bank FILE`."""

from pathlib import Path
from typing import Any

import msgspec
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error

from swapbench.standings.error_rates import banked


class Command(BaseCommand):
    help = (
        "Adds the pairs of identical code that attempts have measured to a bank for `swapbench calibrate --bank FILE`."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, help="JSON lines; what it holds already is not added again")

    def handle(self, *args: Any, file: Path, **options: Any) -> None:
        try:
            before = file.read_bytes() if file.exists() else b""
            held = set(before.splitlines())
            lines = [line for line in map(msgspec.json.encode, banked()) if line not in held]
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("ab") as bank:
                # A run that was killed may have left half a line.
                bank.write(b"\n" if before and not before.endswith(b"\n") else b"")
                bank.writelines(line + b"\n" for line in lines)
        except Error as error:
            raise CommandError(
                f"The database cannot be read ({error}); is it migrated? manage.py doctor says."
            ) from None
        except OSError as error:
            raise CommandError(f"{file} cannot be written: {error.strerror}.") from None
        self.stdout.write(f"Pairs added to {file}: {len(lines)}.")
