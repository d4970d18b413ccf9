"""What this machine has and lacks for judging; `swapbench doctor` renders it. Imports torch only in a process of its own."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from workers.protocol import celery_settings
from workers.sandbox.doctor import checks as sandbox_checks


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `needed`: without it nothing can be judged here."""

    name: str
    ok: bool
    found: str
    mend: str = ""
    needed: bool = True


def checks() -> Iterator[Finding]:
    """Interpreter, torch, git, sandbox, accelerator, broker: each with what was found and how to mend it."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    yield Finding("python", sys.version_info >= (3, 11), version, "install Python 3.11 or newer")
    git = shutil.which("git")
    said = subprocess.run([git, "--version"], capture_output=True, text=True, check=False).stdout.strip() if git else ""
    yield Finding("git", bool(git), said or "not installed", "apt install git")
    yield from _engine()
    levels = []
    for check in sandbox_checks():
        is_level = check.name.startswith("isolation ")
        if is_level:
            levels.append(check.ok)
        yield Finding(check.name, check.ok, check.found, check.how_to_mend, needed=check.name == "bubblewrap")
    yield Finding(
        "isolation", any(levels), "at least one level works" if any(levels) else "no level works", "see the rows above"
    )
    yield _broker()


def _engine() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        yield Finding("torch", False, "not installed", "in the clone: pip install -e '.[worker]'")
        return
    code = (
        "import json, torch; c = torch.cuda.is_available(); print(json.dumps([str(torch.__version__), "
        "torch.cuda.get_device_name() if c else '', str(torch.version.cuda or '')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        yield Finding(
            "torch", False, done.stderr.strip().splitlines()[-1:][0] if done.stderr else "fails", "reinstall torch"
        )
        return
    version, device, cuda = json.loads(done.stdout.splitlines()[-1])
    yield Finding("torch", True, version)
    yield Finding(
        "accelerator",
        bool(device),
        f"{device}, CUDA {cuda}" if device else "none: this machine judges the CPU class",
        "for a GPU class, install the driver and a CUDA build of torch",
        needed=False,
    )


def _broker() -> Finding:
    url = os.environ.get("SWAPBENCH_BROKER_URL") or "filesystem://"
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
    try:
        from kombu import Connection
    except ImportError:
        return Finding(
            "broker", False, "celery is not installed", "in the clone: pip install -e '.[worker]'", needed=False
        )
    options: Any = celery_settings(os.environ, Path(__file__).resolve().parent.parent)["broker_transport_options"]
    try:
        with Connection(url, connect_timeout=3, transport_options=options) as connection:
            connection.ensure_connection(max_retries=1, timeout=3)
    except Exception as error:
        return Finding(
            "broker",
            False,
            f"{shown}: {type(error).__name__}: {error}",
            "start it, or mend SWAPBENCH_BROKER_URL",
            False,
        )
    return Finding("broker", True, shown)
