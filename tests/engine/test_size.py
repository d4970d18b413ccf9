"""The core stays small enough to read in an evening."""

from pathlib import Path

import engine

CORE = ("models", "runner", "kv_cache.py", "scheduler.py", "loader.py", "sampler.py")


def test_the_core_has_at_most_two_thousand_lines() -> None:
    root = Path(engine.__file__).parent
    files = [
        file for part in CORE for file in ([root / part] if part.endswith(".py") else (root / part).glob("**/*.py"))
    ]
    lines = {str(file.relative_to(root)): len(file.read_text().splitlines()) for file in files}
    assert len(lines) > 10
    assert sum(lines.values()) <= 2000, lines
