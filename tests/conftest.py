"""What holds for all tests."""

import pytest

from workers.sandbox import cgroups


def pytest_configure(config: pytest.Config) -> None:
    """Finds its place among the control groups before pytest-xdist starts its workers.

    Under version 2 a process makes room for its hosts' groups by moving into a leaf, which it may only do while it is alone; workers are
    then born in the leaf.
    """
    if not hasattr(config, "workerinput"):
        cgroups.find()
