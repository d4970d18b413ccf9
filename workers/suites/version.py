"""Which suites these are: results of different versions are never compared."""

import functools
import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PARTS = (
    "engine/slots",
    "engine/reference",
    "engine/workloads",
    "workers/suites",
    "workers/judge",
    "workers/host",
    "workers/wire.py",
    "workers/calibrations.py",
    "workers/statistics",
)


@functools.cache
def suite_version() -> str:
    """The first 16 hex digits of a hash over suites, contracts, reference, judge, host and statistics as they are installed."""
    digest = hashlib.sha256()
    for part in PARTS:
        for path in [ROOT / part] if part.endswith(".py") else sorted((ROOT / part).rglob("*")):
            if path.suffix in (".py", ".ini") and "__pycache__" not in path.parts:
                digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def contracts_of(tree: Path) -> str:
    """A hash of the slot contracts below `tree`: a host loads the tree's, and the judge must mean the same by them."""
    digest = hashlib.sha256()
    for path in sorted((tree / "engine" / "slots").rglob("*.py")):
        digest.update(path.relative_to(tree).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
