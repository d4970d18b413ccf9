"""Where tensors come to lie in a host is drawn anew in each process."""

import subprocess
import sys

import pytest

TENSORS = """
import torch
from workers.host.layout import scatter
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4
before = resident()
scatter()
grown = resident() - before
distances = []
for size in (1, 2, 4):
    first, second = torch.empty(size << 18), torch.empty(size << 18)
    distances.append((second.data_ptr() - first.data_ptr()) % 4096)
print(grown, *distances)
"""


@pytest.fixture(scope="module")
def seen() -> list[list[int]]:
    """Of each of some processes: KiB that scattering made resident, and the distance of two tensors of 1, 2 and 4 MiB, within a page."""
    processes = [subprocess.Popen([sys.executable, "-c", TENSORS], stdout=subprocess.PIPE, text=True) for _ in range(6)]
    return [[int(part) for part in process.communicate(timeout=120)[0].split()] for process in processes]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_distance_of_two_tensors_differs_from_process_to_process(seen: list[list[int]], size: int) -> None:
    # One in 64 places each: four of six alike would be one in some thousands.
    assert len({process[size] for process in seen}) >= 3


def test_holes_take_no_memory(seen: list[list[int]]) -> None:
    assert max(process[0] for process in seen) < 8 * 1024
