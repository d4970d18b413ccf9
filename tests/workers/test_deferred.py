"""What `import torch` leaves for later in a module host is there as soon as something needs it."""

import subprocess
import sys

import pytest

from workers.host.__main__ import NEEDS_ALL_OF_TORCH
from workers.suites.version import ROOT

BEGIN = """
from workers import deferred
deferred.import_torch()
import sys, torch
waiting = lambda: len(deferred._waiting)
assert waiting() == 2, waiting()
torch.nn.functional.scaled_dot_product_attention(*[torch.ones(1, 2, 3, 4)] * 3)
assert torch.ones(3, 4, requires_grad=True).exp().sum().backward() is None
drawn = torch.randn(3, generator=torch.Generator().manual_seed(3))
assert torch.equal(drawn, torch.randn(3, generator=torch.Generator().manual_seed(3)))
assert isinstance(torch.default_generator, torch.Generator) and not isinstance(3, torch.Generator)
assert waiting() == 2, "computing alone needs nothing of it"
"""

SHAPES = """
    assert torch.linalg.svd(torch.empty(3, 4))[0].shape == (3, 3)
    q = torch.empty(1, 2, 3, 4)
    assert torch.nn.functional.scaled_dot_product_attention(q, q, q).shape == q.shape
"""

QUICK = ("torch._refs", "an attribute of torch", "meta")
NEEDS = {
    "compiled": """
twice = torch.compile(lambda x: torch.relu(x) * 2, backend="aot_eager")
assert torch.equal(twice(torch.tensor([-1.0, 3.0])), torch.tensor([0.0, 6.0]))
""",
    "exported": """
class Twice(torch.nn.Module):
    def forward(self, x):
        return x * 2
program = torch.export.export(Twice(), (torch.ones(2),))
assert torch.equal(program.module()(torch.ones(2)), torch.full((2,), 2.0))
""",
    "a part of torch.export": (
        "from torch.export.exported_program import ExportedProgram\nassert ExportedProgram is torch.export.ExportedProgram"
    ),
    "all names of torch.export": "from torch.export import *\nassert Dim is torch.export.Dim",
    "torch._refs": "import torch._refs\nassert torch._refs.add(torch.ones(1), 1) == 2",
    "decompositions": "from torch._decomp import decomposition_table\nassert len(decomposition_table) > 500",
    "an attribute of torch": "assert torch.broadcast_shapes((2, 1), (1, 3)) == (2, 3)",
    "forward mode": """
import torch.autograd.forward_ad as ad
with ad.dual_level():
    assert ad.unpack_dual(ad.make_dual(torch.ones(2), torch.ones(2)).exp()).tangent.shape == (2,)
""",
    "vmap before export": "torch.vmap(torch.sin)(torch.ones(2, 2))\nassert torch.export.export",
    "fake tensors": f"from torch._subclasses import FakeTensorMode\nwith FakeTensorMode():{SHAPES}",
    "meta": f"deferred.complete()\nwith torch.device('meta'):{SHAPES}",
}


@pytest.mark.parametrize(
    "need", [pytest.param(need, marks=[] if need in QUICK else [pytest.mark.slow]) for need in NEEDS]
)
def test_what_was_left_for_later_is_there_when_it_is_needed(need: str) -> None:
    script = (
        f"{BEGIN}{NEEDS[need]}\nassert waiting() == 0\nassert torch.export.Dim and type(torch.export) is type(sys)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("source", "complete"),
    [
        ('torch.empty(3, device="meta")', True),
        ("x.to('meta')", True),
        ('# needs = ["numpy"]', True),
        ("torch.ops.prims.convert_element_type(x, torch.float16)", True),
        ("metadata.lengths  # what the meta", False),
    ],
)
def test_a_slot_file_that_may_meet_the_device_meta_finds_all_of_torch(source: str, complete: bool) -> None:
    assert bool(NEEDS_ALL_OF_TORCH.search(source.encode())) == complete
