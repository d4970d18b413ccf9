"""Every test of the platform has a forge, a mirror and a policy of its own, below its own folder."""

from pathlib import Path
from typing import Any

import pytest

from swapbench.forge.local import LocalForge
from tests.platform.cast import MACHINE, MAINTAINER, Repository


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, settings: Any) -> None:
    settings.VAR = tmp_path
    settings.SWAPBENCH_FORGE = "local"
    settings.SWAPBENCH_LOCAL_FORGE = tmp_path / "forge.git"
    settings.SWAPBENCH_BRANCH = "main"
    settings.SWAPBENCH_POLICY = {
        "machine_classes": [MACHINE],
        "suite_version": "suite-1",
        "first_time_needs_approval": False,
        "merge_approvals": 0,
        "maintainers": [MAINTAINER],
    }


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "forge.git").start()


@pytest.fixture
def forge(repository: Repository) -> LocalForge:
    return LocalForge(repository.path)


@pytest.fixture
def rules(settings: Any):  # type: ignore[no-untyped-def]
    """Changes fields of the policy for one test."""

    def change(**fields: object) -> None:
        settings.SWAPBENCH_POLICY = {**settings.SWAPBENCH_POLICY, **fields}

    return change
