"""What pytest-benchmark would find out about machine and commit by running other programs: the outcome carries both already."""

from typing import Any


def pytest_benchmark_generate_machine_info(config: Any) -> dict[str, Any]:
    """Nothing: see the outcome's environment."""
    return {}


def pytest_benchmark_generate_commit_info(config: Any) -> dict[str, Any]:
    """Nothing: see the outcome's job."""
    return {}
