"""What a module claims not to need of the accelerator's memory is not there while it is timed."""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.slots.kind import Call, CallFailed, Environment, Held, TensorSpec, kind_named
from engine.workloads.linear import CUDA
from tests.engine.judging import header
from workers import vmm
from workers.judge import ballast as room_of
from workers.judge.ballast import BESIDE_BYTES, MIB, OWN_BYTES, OWN_CALLS, PIECE_BYTES, SPARE_BYTES, Ballast, Room
from workers.judge.client import ContributedError
from workers.judge.device import DeviceClient
from workers.sandbox import SandboxError

GIB = 1024 * MIB
ALLOWED = Room(1000 * MIB, 500 * MIB, (7, 5))
on_accelerator = pytest.mark.skipif(not torch.cuda.is_available(), reason="takes memory of an accelerator")


class Client(DeviceClient):
    """A client whose host has taken as much as the test says."""

    def __init__(self, grown: int) -> None:
        self.bytes = grown

    def grown(self) -> int:
        return self.bytes


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An accelerator with 20 GiB free, whose pages are of one MiB; `own`: what the judge's allocator was asked for."""
    found = SimpleNamespace(free=20 * GIB, own=[], refuses=0)

    class Reservation:
        def __init__(self, nbytes: int) -> None:
            self.nbytes = nbytes // MIB * MIB
            found.free -= self.nbytes

        def close(self) -> None:
            found.free += self.nbytes

    def taken(pieces: tuple[int, ...]) -> list[torch.Tensor]:
        if found.refuses:
            found.refuses -= 1
            raise torch.OutOfMemoryError("CUDA out of memory.")
        found.own.append((sum(pieces), found.free))
        return []

    monkeypatch.setattr(vmm, "Reservation", Reservation)
    monkeypatch.setattr(vmm, "granularity", lambda: MIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (found.free, 24 * GIB))
    monkeypatch.setattr(room_of, "_taken", taken)
    return found


def test_all_is_taken_but_what_the_host_may_still_take(device: SimpleNamespace) -> None:
    with Ballast().around(Client(grown=300 * MIB), ALLOWED):
        # What the judge needs itself is the first to be set aside, or it would count as free.
        assert device.own == [(12, 20 * GIB)]
        assert device.free == 700 * MIB
    assert SPARE_BYTES <= device.free < 20 * GIB


def test_most_is_kept_from_turn_to_turn(device: SimpleNamespace) -> None:
    ballast = Ballast()
    for _ in range(3):
        with ballast.around(Client(100 * MIB), ALLOWED):
            assert device.free == 900 * MIB
        assert SPARE_BYTES <= device.free < SPARE_BYTES + 2 * PIECE_BYTES
    # The next case's calls may take more than there was between them.
    with ballast.around(Client(0), Room(8 * GIB, 0, ())):
        assert device.free == 8 * GIB
    ballast.close()
    assert device.free == 20 * GIB


def test_a_turns_first_call_has_more_than_those_that_count(device: SimpleNamespace) -> None:
    ballast = Ballast()
    with ballast.around(Client(0), ALLOWED):
        pass
    room = Room(2 * GIB, 3 * GIB, ())
    ballast.before(room)
    assert 5 * GIB + SPARE_BYTES <= device.free < 20 * GIB


def test_a_judge_that_needs_more_itself_gets_its_ballast_back(device: SimpleNamespace) -> None:
    ballast = Ballast()
    with ballast.around(Client(0), ALLOWED):
        pass
    device.refuses = 1
    with ballast.around(Client(0), ALLOWED):
        assert device.own[-1] == (12, 20 * GIB)
        assert device.free == 1000 * MIB


def test_a_device_with_less_left_than_that_is_left_as_it_is(device: SimpleNamespace) -> None:
    device.free = 600 * MIB
    with Ballast().around(Client(grown=300 * MIB), ALLOWED):
        assert device.free == 600 * MIB


def test_whoever_has_taken_more_already_fails_and_is_told_how_much(device: SimpleNamespace) -> None:
    why = r"keeps 1,200 MiB .* beside what is stored; .* may take 1,000 MiB"
    with pytest.raises(CallFailed, match=why), Ballast().around(Client(grown=1200 * MIB), ALLOWED):
        raise AssertionError("no call is made")
    assert device.free >= SPARE_BYTES


def test_a_module_that_runs_out_of_memory_reads_why(device: SimpleNamespace) -> None:
    said = ContributedError("OutOfMemoryError: CUDA out of memory. (line 3)", "OutOfMemoryError", "trace")
    why = r"line 3.* has 1,000 MiB .* memory beside what is stored"
    with pytest.raises(ContributedError, match=why) as raised, Ballast().around(Client(0), ALLOWED):
        raise said
    assert raised.value.traceback == "trace"
    assert device.free >= SPARE_BYTES


def test_what_else_a_module_raises_is_left_as_it_is(device: SimpleNamespace) -> None:
    said = ContributedError("ValueError: no", "ValueError", "")
    with pytest.raises(ContributedError) as raised, Ballast().around(Client(0), ALLOWED):
        raise said
    assert raised.value is said
    assert device.free >= SPARE_BYTES


def test_a_judge_that_runs_out_of_memory_blames_nobody(device: SimpleNamespace) -> None:
    blame = "too little memory left for the judge"
    with pytest.raises(SandboxError, match=blame), Ballast().around(Client(0), ALLOWED):
        raise torch.OutOfMemoryError("it")
    device.refuses = 2
    with pytest.raises(SandboxError, match=blame), Ballast().around(Client(0), ALLOWED):
        raise AssertionError("no call is made")
    assert device.free >= SPARE_BYTES


def test_a_room_holds_what_base_took_what_a_weight_unpacks_to_and_what_the_judge_keeps() -> None:
    x = torch.zeros(8, 4)
    call = Call("linear", {}, {"x": x}, {"y": TensorSpec((8, 16), "float32")})
    held = [{"a": Held(torch.zeros(n), "read"), "b": Held(torch.zeros(99), "private")} for n in (3, 5)]
    room = Room.of(base=500, beside=70, held=held, call=call)
    assert room.allowed == 500 + 70 + BESIDE_BYTES
    assert room.lent == 5 * 4 + 2 * 128 + 512
    assert sum(room.own) == OWN_CALLS * (2 * 128 + 512) + OWN_BYTES
    assert Room.of(base=-5, beside=70, held=held, call=call).allowed == 70 + BESIDE_BYTES


def test_only_quantization_claims_memory_and_its_room_is_for_few_of_a_prompts_weights() -> None:
    where = Environment("h200", "cuda", ("bfloat16",), sm=90)
    for name in ("attention", "normalization", "activation"):
        kind = kind_named(name)
        cases = kind.cases("performance", header(name), where)
        assert cases
        assert all(kind.beside_stored(case) is None for case in cases)
    kind = kind_named("quantization")
    prompts = [workload for workload in CUDA if not workload.decode]
    assert prompts
    for workload in prompts:
        beside = kind.beside_stored(kind.case(workload, "bfloat16", "cuda", "performance"))  # type: ignore[attr-defined]
        every_weight = 2 * workload.weights * workload.outputs * workload.inputs
        assert beside + BESIDE_BYTES < every_weight / 3


# -- memory that nobody uses ------------------------------------------------------------------------------------------


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A driver with pages of 10 bytes, no piece of more than 40, and `pages` of them."""
    found = SimpleNamespace(pages=100, made=[], released=[])

    def create(nbytes: int) -> Any:
        if nbytes > 40 or nbytes // 10 > found.pages:
            raise vmm.DeviceMemoryError("cuMemCreate failed with CUDA_ERROR_OUT_OF_MEMORY (2).")
        found.pages -= nbytes // 10
        found.made.append(nbytes)
        return len(found.made)

    monkeypatch.setattr(vmm, "granularity", lambda: 10)
    monkeypatch.setattr(vmm, "_create", create)
    monkeypatch.setattr(vmm, "_call", lambda name, handle: found.released.append((name, handle)))
    return found


def test_memory_is_taken_in_parts_where_there_is_no_such_piece(driver: SimpleNamespace) -> None:
    taken = vmm.Reservation(109)
    assert taken.nbytes == 100 == sum(driver.made)
    taken.close()
    assert sorted(handle for _, handle in driver.released) == list(range(1, len(driver.made) + 1))
    assert {name for name, _ in driver.released} == {"cuMemRelease"}
    taken.close()
    assert len(driver.released) == len(driver.made)


def test_of_memory_that_is_not_there_all_is_taken_that_is(driver: SimpleNamespace) -> None:
    driver.pages = 7
    before = vmm.held_bytes()
    taken = vmm.Reservation(100)
    assert taken.nbytes == 70 == vmm.held_bytes() - before
    taken.close()
    assert vmm.held_bytes() == before


def test_nothing_can_be_taken(driver: SimpleNamespace) -> None:
    assert vmm.Reservation(9).nbytes == 0
    assert driver.made == []


ASKS = """
import sys, torch
torch.zeros(1, device="cuda")
print("ready", flush=True)
sys.stdin.readline()
for mib in (64, 1024):
    try:
        torch.empty(mib << 20, dtype=torch.uint8, device="cuda")
        print("had", mib, flush=True)
    except torch.OutOfMemoryError:
        print("lacked", mib, flush=True)
"""


@on_accelerator
def test_another_process_has_no_more_than_what_is_left() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ASKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        free, _ = torch.cuda.mem_get_info()
        taken = vmm.Reservation(free - 256 * MIB)
        try:
            assert torch.cuda.mem_get_info()[0] <= 256 * MIB + vmm.granularity()
            other.stdin.write("go\n")
            other.stdin.flush()
            assert other.stdout.read() == "had 64\nlacked 1024\n"
        finally:
            taken.close()
        assert torch.cuda.mem_get_info()[0] > free // 2


@on_accelerator
def test_what_is_mapped_here_is_counted_as_ones_own() -> None:
    before = vmm.held_bytes()
    mapping, fd = vmm.make(3 * MIB)
    os.close(fd)
    assert vmm.held_bytes() == before + mapping.nbytes
    mapping.close()
    assert vmm.held_bytes() == before
