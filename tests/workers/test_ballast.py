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
from workers import vmm, wire
from workers.host.__main__ import compute
from workers.host.profiled import WatchedDriver
from workers.judge import ballast as room_of
from workers.judge import device as judging
from workers.judge.ballast import (
    BESIDE_BYTES,
    LOOSE_BYTES,
    MIB,
    OWN_BYTES,
    OWN_CALLS,
    PIECE_BYTES,
    SPARE_BYTES,
    Ballast,
    Room,
)
from workers.judge.client import ContributedError, HostClient
from workers.judge.device import ALIGNMENT, DeviceClient, arenas_of
from workers.sandbox import SandboxError

GIB = 1024 * MIB
ALLOWED = Room(1000 * MIB, 500 * MIB, (7, 5))
on_accelerator = pytest.mark.skipif(not torch.cuda.is_available(), reason="takes memory of an accelerator")


class Client(DeviceClient):
    """A client whose host has as much as the test says, one figure after the other, the last one over and over; without it there is `others`."""

    def __init__(self, *had: int, others: int = 0) -> None:
        self.had = list(had)
        self.process = SimpleNamespace(kill=lambda: setattr(self, "had", [others]))  # type: ignore[assignment]
        self._tails = {}
        self._shared = {}

    def taken(self) -> int:
        return self.had.pop(0) if len(self.had) > 1 else self.had[0]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An accelerator with 20 GiB free, whose pages are of one MiB; `own`: what the judge's allocator was asked for."""
    found = SimpleNamespace(free=20 * GIB, own=[], refuses=0, keeps=0, cached=0)

    class Reservation:
        def __init__(self) -> None:
            self.nbytes = 0

        def take(self, nbytes: int) -> int:
            part = max(0, min(nbytes, found.free - found.keeps)) // MIB * MIB
            found.free -= part
            self.nbytes += part
            return int(part)

        def close(self) -> None:
            found.free += self.nbytes
            self.nbytes = 0

    def taken(pieces: tuple[int, ...]) -> list[torch.Tensor]:
        if found.refuses:
            found.refuses -= 1
            raise torch.OutOfMemoryError("CUDA out of memory.")
        found.own.append((sum(pieces), found.free))
        return []

    def empty_cache() -> None:
        found.free, found.cached = found.free + found.cached, 0

    monkeypatch.setattr(vmm, "Reservation", Reservation)
    monkeypatch.setattr(vmm, "granularity", lambda: MIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (found.free, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    monkeypatch.setattr(room_of, "_taken", taken)
    monkeypatch.setattr(room_of, "_own", lambda: found.judges)
    found.judges = 0
    return found


def test_all_is_taken_but_what_the_host_may_still_take(device: SimpleNamespace) -> None:
    with Ballast().around(Client(300 * MIB), ALLOWED):
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
    assert ballast.close()
    assert device.free == 20 * GIB
    assert not ballast.close()


def test_a_turns_first_call_has_more_than_those_that_count(device: SimpleNamespace) -> None:
    ballast = Ballast()
    with ballast.around(Client(0), ALLOWED):
        pass
    ballast.before(Room(2 * GIB, 3 * GIB, ()), {"inputs": GIB, "outputs": GIB})
    assert 7 * GIB + SPARE_BYTES <= device.free < 20 * GIB


def test_a_module_that_runs_out_of_memory_in_its_first_call_reads_what_it_had(device: SimpleNamespace) -> None:
    said = ContributedError("OutOfMemoryError: CUDA out of memory.", "OutOfMemoryError", "")
    why = "In its first call a module has at least 4,072 MiB"
    with pytest.raises(ContributedError, match=why), Ballast().first(Client(0), ALLOWED):
        raise said


def test_a_host_that_takes_memory_while_it_is_taken_away_has_it_counted(device: SimpleNamespace) -> None:
    # 300 MiB when it is asked to give back, 900 once the judge has begun.
    with Ballast().around(Client(300 * MIB, 300 * MIB, 900 * MIB), ALLOWED):
        assert device.free == 100 * MIB
    why = "keeps 1,500 MiB"
    with pytest.raises(CallFailed, match=why), Ballast().around(Client(300 * MIB, 300 * MIB, 1500 * MIB), ALLOWED):
        raise AssertionError("no call is made")


def test_whoever_has_more_after_the_calls_fails(device: SimpleNamespace) -> None:
    with pytest.raises(CallFailed, match="keeps 2,000 MiB"), Ballast().around(Client(0, 0, 0, 2000 * MIB), ALLOWED):
        pass
    assert device.free >= SPARE_BYTES
    # A little is the driver's.
    with Ballast().around(Client(0, 0, 0, 1000 * MIB + LOOSE_BYTES), ALLOWED):
        pass


def test_a_judge_that_needs_more_itself_gets_its_ballast_back(device: SimpleNamespace) -> None:
    ballast = Ballast()
    with ballast.around(Client(0), ALLOWED):
        pass
    device.refuses = 1
    with ballast.around(Client(0), ALLOWED):
        assert device.own[-1] == (12, 20 * GIB)
        assert device.free == 1000 * MIB


def test_a_host_is_left_what_it_may_take_or_nobody_is_blamed(device: SimpleNamespace) -> None:
    device.free, device.cached = 600 * MIB, 300 * MIB
    with Ballast().around(Client(300 * MIB), ALLOWED):
        assert device.free == 700 * MIB
        # The judge's allocator gave back all, and takes its part again before the host is left what remains.
        assert device.own == [(12, 600 * MIB), (12, 900 * MIB)]
    device.free, device.cached = 600 * MIB, 0
    why = "a host should have 700 MiB, and 600 MiB are free"
    with pytest.raises(SandboxError, match=why), Ballast().around(Client(300 * MIB), ALLOWED):
        raise AssertionError("no call is made")


def test_memory_that_the_driver_keeps_is_left_where_it_is_little(device: SimpleNamespace) -> None:
    device.keeps = 1000 * MIB + LOOSE_BYTES
    with Ballast().around(Client(0), ALLOWED):
        assert device.free == device.keeps
    device.keeps = 2 * GIB
    with pytest.raises(SandboxError, match="does not give them"), Ballast().around(Client(0), ALLOWED):
        raise AssertionError("no call is made")


def test_whoever_has_taken_more_already_fails_and_is_told_how_much(device: SimpleNamespace) -> None:
    why = r"keeps 1,200 MiB .* beside what is lent to it; .* may have 1,000 MiB"
    with pytest.raises(CallFailed, match=why), Ballast().around(Client(1200 * MIB), ALLOWED):
        raise AssertionError("no call is made")
    assert device.free == 20 * GIB


def test_what_another_program_takes_is_not_the_modules(device: SimpleNamespace) -> None:
    """What is still counted when the host is gone never was its own."""
    why = "Another program"
    client = Client(1200 * MIB, others=LOOSE_BYTES + 1)
    with pytest.raises(SandboxError, match=why), Ballast().around(client, ALLOWED):
        raise AssertionError("no call is made")
    client = Client(0, others=LOOSE_BYTES + 1)
    with pytest.raises(SandboxError, match=why), Ballast().around(client, ALLOWED):
        raise ContributedError("OutOfMemoryError: CUDA out of memory.", "OutOfMemoryError", "")


def test_what_the_judge_takes_meanwhile_is_not_the_modules(device: SimpleNamespace) -> None:
    def lacks_what_the_judge_took() -> None:
        device.judges = LOOSE_BYTES + 1
        raise ContributedError("OutOfMemoryError: CUDA out of memory.", "OutOfMemoryError", "")

    why = "The judge has taken memory that the host should have had"
    with pytest.raises(SandboxError, match=why), Ballast().around(Client(0), ALLOWED):
        lacks_what_the_judge_took()


@pytest.mark.parametrize(
    ("sentence", "error"),
    [
        ("OutOfMemoryError: CUDA out of memory. (line 3)", "OutOfMemoryError"),
        ("RuntimeError: CUBLAS_STATUS_ALLOC_FAILED (line 3)", "RuntimeError"),
    ],
)
def test_a_module_that_runs_out_of_memory_reads_why(device: SimpleNamespace, sentence: str, error: str) -> None:
    said = ContributedError(sentence, error, "trace")
    why = r"line 3.* has 1,000 MiB .* memory, its context among it, beside what is lent to it"
    with pytest.raises(ContributedError, match=why) as raised, Ballast().around(Client(0), ALLOWED):
        raise said
    assert raised.value.traceback == "trace"
    assert raised.value.error == error
    assert device.free >= SPARE_BYTES


def test_what_else_a_module_raises_is_left_as_it_is(device: SimpleNamespace) -> None:
    said = ContributedError("ValueError: no", "ValueError", "")
    with pytest.raises(ContributedError) as raised, Ballast().around(Client(0), ALLOWED):
        raise said
    assert raised.value is said
    assert device.free >= SPARE_BYTES


def test_a_judge_that_runs_out_of_memory_blames_nobody(device: SimpleNamespace) -> None:
    blame = "too little memory left for the judge"
    for error in (torch.OutOfMemoryError("it"), vmm.DeviceMemoryError("it")):
        with pytest.raises(SandboxError, match=blame), Ballast().around(Client(0), ALLOWED):
            raise error
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
        assert beside + BESIDE_BYTES < every_weight / 2


# -- memory that nobody uses ------------------------------------------------------------------------------------------


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A driver with pages of 10 bytes, no piece of more than 40, and `pages` of them."""
    found = SimpleNamespace(pages=100, made=[], released=[], code=vmm.OUT_OF_MEMORY)

    def create(nbytes: int) -> Any:
        if nbytes > 40 or nbytes // 10 > found.pages:
            raise vmm.DeviceMemoryError("cuMemCreate failed.", found.code)
        found.pages -= nbytes // 10
        found.made.append(nbytes)
        return len(found.made)

    monkeypatch.setattr(vmm, "granularity", lambda: 10)
    monkeypatch.setattr(vmm, "_create", create)
    monkeypatch.setattr(vmm, "_call", lambda name, handle: found.released.append((name, handle)))
    return found


def test_memory_is_taken_in_parts_where_there_is_no_such_piece(driver: SimpleNamespace) -> None:
    before, taken = vmm.held_bytes(), vmm.Reservation()
    assert taken.take(109) == 100 == taken.nbytes == sum(driver.made) == vmm.held_bytes() - before
    assert taken.take(9) == 0
    taken.close()
    assert sorted(handle for _, handle in driver.released) == list(range(1, len(driver.made) + 1))
    assert {name for name, _ in driver.released} == {"cuMemRelease"}
    taken.close()
    assert len(driver.released) == len(driver.made)
    assert vmm.held_bytes() == before


def test_of_memory_that_is_not_there_all_is_taken_that_is(driver: SimpleNamespace) -> None:
    driver.pages = 7
    taken = vmm.Reservation()
    assert taken.take(100) == 70
    assert taken.take(100) == 0
    taken.close()


def test_a_driver_that_fails_otherwise_is_not_taken_for_one_without_memory(driver: SimpleNamespace) -> None:
    driver.pages, driver.code = 7, 999
    taken = vmm.Reservation()
    with pytest.raises(vmm.DeviceMemoryError):
        taken.take(100)
    assert taken.nbytes == 0


def test_what_could_not_be_released_still_counts(driver: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    before, taken = vmm.held_bytes(), vmm.Reservation()
    taken.take(80)

    def fails(name: str, handle: int) -> None:
        raise vmm.DeviceMemoryError("cuMemRelease failed.")

    with monkeypatch.context() as broken:
        broken.setattr(vmm, "_call", fails)
        with pytest.raises(vmm.DeviceMemoryError):
            taken.close()
    assert taken.nbytes == 80 == vmm.held_bytes() - before
    taken.close()
    assert vmm.held_bytes() == before


# -- what is counted of a host ----------------------------------------------------------------------------------------


def test_what_a_host_has_is_counted_from_before_it_imports_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is taken while the slot file is imported counts as well."""
    memory = SimpleNamespace(free=1000, reserved=100, held=50)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (memory.free, 2000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: memory.reserved)
    monkeypatch.setattr(vmm, "held_bytes", lambda: memory.held)

    def imports(self: HostClient, path: str, threads: int, timeout: float) -> None:
        memory.free -= 300

    monkeypatch.setattr(HostClient, "load", imports)
    client = Client(0)
    client.load("slot.py", 1, 1.0)
    assert DeviceClient.taken(client) == 300
    # The judge's own is not the host's, nor what it has lent or holds.
    memory.free, memory.reserved, memory.held = memory.free - 60, memory.reserved + 40, memory.held + 20
    assert DeviceClient.taken(client) == 300
    memory.free -= 7
    assert DeviceClient.taken(client) == 307


def test_whoever_writes_to_what_is_held_for_another_case_is_found() -> None:
    client = Client(0)
    weights = {case: {"0/weight": Held(torch.arange(4.0) + number, "read")} for number, case in enumerate("ab")}
    views = {case: {"0/weight": held["0/weight"].tensor.clone()} for case, held in weights.items()}
    client._shared = {case: [SimpleNamespace(views=view)] for case, view in views.items()}  # type: ignore[misc]
    client.check_lent(weights)
    views["a"]["0/weight"][2] = 7.0
    with pytest.raises(CallFailed, match="wrote to '0/weight', which is held for a"):
        client.check_lent(weights)


def test_whoever_writes_beyond_a_calls_part_of_the_standing_buffers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *given, **_: tensor(*given))
    client = Client(0)
    buffers = {purpose: torch.zeros(4096, dtype=torch.uint8) for purpose in ("inputs", "outputs")}
    client._arenas = {purpose: SimpleNamespace(bytes=whole) for purpose, whole in buffers.items()}  # type: ignore[misc]
    client.mark_tails({"inputs": 4096, "outputs": 512})
    assert not buffers["inputs"].any()
    assert not buffers["outputs"][:512].any()
    buffers["outputs"][:512] = 3
    client.check_lent({})
    buffers["outputs"][-1] += 1
    with pytest.raises(CallFailed, match="memory for outputs beyond what a call has there"):
        client.check_lent({})


@pytest.mark.parametrize("count", [0, 1, 10, 1000])
def test_tensors_are_compared_a_part_at_a_time(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "COMPARED_AT_ONCE", 10)
    one, other = torch.arange(count), torch.arange(count)
    assert judging._same(one, other)
    for at in {0, count // 2, count - 1} - {-1} if count else ():
        other[at] += 1
        assert not judging._same(one, other)
        other[at] -= 1


def test_a_standing_buffer_is_as_large_as_it_will_have_to_be() -> None:
    x = torch.zeros(100)
    call = Call("linear", {}, {"x": x}, {"y": TensorSpec((3,), "float32"), "z": TensorSpec((3,), "float32")})
    assert arenas_of(call) == {"inputs": 2 * ALIGNMENT, "outputs": 2 * ALIGNMENT}


class Lending:
    """A host's view of buffers."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}

    def tensor(self, region: wire.Region) -> torch.Tensor:
        return self.tensors.setdefault(region.name, torch.zeros(region.shape))


class Driving:
    """A driver that puts what it gives where it is wanted, or gives it back."""

    into: dict[str, torch.Tensor] = {}

    def run(self, operation: str, params: Any, inputs: Any, held: Any) -> dict[str, torch.Tensor]:
        if "y" in self.into:
            return {"y": self.into["y"].copy_(inputs["x"] + 1)}
        return {"y": inputs["x"] + 1}


def test_a_host_tells_a_driver_where_outputs_go() -> None:
    mappings, driver = Lending(), Driving()
    regions = [wire.Region(name, 1, 0, (3,), "float32") for name in ("x", "y")]
    request = wire.Run(1, "add", {}, [], regions[:1], regions[1:])
    _, results = compute(driver, request, {}, mappings)  # type: ignore[arg-type, misc]
    assert mappings.tensors["y"].tolist() == [1.0, 1.0, 1.0]
    assert results["y"].data_ptr() == mappings.tensors["y"].data_ptr()


def test_a_driver_that_is_looked_into_passes_on_where_outputs_go() -> None:
    inner = Driving()
    assert not hasattr(WatchedDriver(object()), "into")  # type: ignore[arg-type]
    WatchedDriver(inner).into = {"y": torch.zeros(1)}
    assert list(inner.into) == ["y"]


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
        taken = vmm.Reservation()
        try:
            taken.take(free - 256 * MIB)
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
