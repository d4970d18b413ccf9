"""Where tensors come to lie in a host is drawn anew in each process."""

import resource
import subprocess
import sys

from workers.host.layout import scatter

TWO_TENSORS = """
import torch
from workers.host.layout import scatter
scatter()
first, second = torch.empty(1 << 18), torch.empty(1 << 18)
print((second.data_ptr() - first.data_ptr()) % 4096)
"""


def test_the_distance_of_two_tensors_differs_from_process_to_process() -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", TWO_TENSORS], stdout=subprocess.PIPE, text=True) for _ in range(5)
    ]
    distances = {process.communicate(timeout=120)[0] for process in processes}
    assert len(distances) > 1
    assert "" not in distances


def test_holes_take_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scatter()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024
