"""`python -m workers.judge.announce`: prints as JSON what this machine is; for the worker, which imports no torch itself."""

import json

from workers.judge import machine
from workers.sandbox import NoLevel, best_level


def announcement() -> dict[str, str]:
    """Machine class, isolation level and a description for a person."""
    facts = machine.facts()
    try:
        level = best_level()
    except NoLevel:
        level = "none"
    what = facts.get("accelerator") or facts["processor"]
    description = f"{what}, {facts['cores']:.0f} cores, torch {facts['torch']}, Python {facts['python']}"
    return {"machine class": machine.machine_class(), "isolation": level, "description": description}


if __name__ == "__main__":
    print(json.dumps(announcement()))
