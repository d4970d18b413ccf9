"""Celery's broker in a folder, made safe for readers and writers that meet.

kombu's own writer creates a message's file where readers look for it, and fills it then; a reader that takes it in between
gets an empty message, which ends its process. Here a message appears under its name only when it is whole, and is taken
by a rename within the same folder, which exactly one reader wins (rename(2)).
"""

import os
import time
import uuid
from pathlib import Path
from queue import Empty
from typing import Any

from kombu import transport
from kombu.transport import filesystem
from kombu.utils.json import dumps, loads


class Channel(filesystem.Channel):
    """A channel whose messages are whole from the moment that they can be seen."""

    def _put(self, queue: str, message: Any, **_: Any) -> None:  # type: ignore[override, unused-ignore]
        folder = Path(self.data_folder_out)
        name = f"{time.time_ns():020d}_{uuid.uuid4()}"
        part = folder / f"{name}.part"
        part.write_bytes(dumps(message).encode())
        part.rename(folder / f"{name}.{queue}.msg")

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        end = f"{queue}.msg"
        for name in sorted(os.listdir(self.data_folder_in)):
            if name.partition(".")[2] != end:
                continue
            path = Path(self.data_folder_in, name)
            taken = path.with_suffix(f".taken-{os.getpid()}")
            try:
                path.rename(taken)
            except FileNotFoundError:
                continue  # Another reader got there first.
            text = taken.read_bytes()
            taken.unlink()
            return loads(text)
        raise Empty


class Transport(filesystem.Transport):
    Channel = Channel


def install() -> None:
    """Has kombu use this transport for filesystem:// addresses, in this process."""
    transport.TRANSPORT_ALIASES["filesystem"] = f"{__name__}:Transport"
