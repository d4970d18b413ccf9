"""The judge on an accelerator: what can be told without one, and with one the memory that both sides share."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from engine.slots.kind import TensorSpec
from workers import vmm
from workers.judge import hosts
from workers.judge.accelerator import Sight
from workers.judge.buffers import laid_out
from workers.judge.device import DeviceClient
from workers.judge.hosts import Hosts, by_core, share_of, shared_out
from workers.judge.inputs import FOLDED_AT_ONCE, WIDTH, digest, fold
from workers.judge.readings import Reading, between, read
from workers.statistics import contended
from workers.suites.performance.bench import differing

OURS = os.getpid()


def sight(reasons: int = 0, pids: tuple[int, ...] | None = (OURS,)) -> Sight:
    return Sight(sm_mhz=1980, celsius=40, watts=300.0, reasons=reasons, pids=pids)


def reading(wall: float, seen: Sight | None = None, strangers: int = 0, busy: float = 0.0) -> Reading:
    return Reading(wall, busy, 0.0, 0.0, 0.0, 0.0, seen, strangers)


def test_a_power_cap_is_the_works_own_affair_and_a_slowdown_is_not() -> None:
    assert sight(reasons=0x04).held_down == ()
    assert sight(reasons=0x04 | 0x40).held_down == ("thermal slowdown by hardware",)


def test_processes_that_are_not_ours_are_counted() -> None:
    assert sight(pids=(OURS, 4242, 4243)).others([4242]) == 1


@pytest.mark.parametrize("pids", [None, (), (4242, 4243)])
def test_where_the_driver_hides_this_process_nothing_is_concluded(pids: tuple[int, ...] | None) -> None:
    assert sight(pids=pids).others([]) == 0


def test_a_stranger_at_either_end_makes_a_stretch_worthless() -> None:
    observation = between(reading(0.0, sight(), strangers=1), reading(1.0, sight()))
    assert any("used the accelerator" in reason for reason in contended(observation))


def test_a_clock_that_is_held_down_makes_a_stretch_worthless() -> None:
    observation = between(reading(0.0, sight()), reading(1.0, sight(reasons=0x80)))
    assert any("power brake" in reason for reason in contended(observation))


def test_a_host_that_is_started_meanwhile_is_not_taken_for_another_program() -> None:
    start, end = reading(0.0), reading(1.0, busy=3.0)
    assert between(start, end).other_cpu_seconds == pytest.approx(3.0)
    assert between(start, end, ahead_seconds=3.0).other_cpu_seconds == 0.0


def test_the_judge_keeps_off_the_processors_of_its_hosts_until_it_closes_them() -> None:
    whole = os.sched_getaffinity(0)
    hosts = Hosts("full", threads=1, device="cuda")
    try:
        hosts.step_aside()
        meanwhile = os.sched_getaffinity(0)
    finally:
        hosts.close()
    assert meanwhile == (shared_out(frozenset(whole - {max(whole)}))[0] if len(whole) > 1 else whole)
    assert os.sched_getaffinity(0) == whole


def test_the_judge_and_the_host_that_is_started_ahead_keep_apart_where_there_is_room() -> None:
    assert shared_out(frozenset(range(12))) == (frozenset(range(6)), frozenset(range(6, 12)))
    assert shared_out(frozenset(range(7))) == (frozenset(range(7)), frozenset(range(7)))


def test_accelerators_of_one_machine_share_out_its_processors() -> None:
    processors = list(range(32))
    assert share_of(processors, 1, 4) == list(range(8, 16))
    assert share_of(processors, 0, 1) == processors
    assert share_of(processors, 2, 0) == share_of(processors, 7, 4) == processors
    assert share_of([0, 1, 2, 3], 1, 2) == [0, 1, 2, 3]  # too few to go round


def test_parts_of_the_processors_share_no_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_siblings", lambda cpu: {cpu % 16, cpu % 16 + 16})
    shares = [set(share_of(by_core(range(32)), slot, 4)) for slot in range(4)]
    assert shares[1] == {4, 5, 6, 7, 20, 21, 22, 23}
    assert set.union(*shares) == set(range(32))
    judge, ahead = shared_out(frozenset(range(32)) - {14, 15, 30, 31})
    assert not {cpu % 16 for cpu in judge} & {cpu % 16 for cpu in ahead}


def test_counters_can_be_read_of_some_processors() -> None:
    one = read(cpus=[0])
    assert (one.processors, read().processors) == (1, os.cpu_count())
    assert 0 < one.busy <= read().busy


def test_tensors_are_laid_out_aligned_and_apart() -> None:
    specs = {"a": TensorSpec((3,), "bool"), "b": TensorSpec((65,), "float32"), "c": TensorSpec((1,), "int64")}
    offsets, size = laid_out(specs, 256)
    assert offsets == {"a": 0, "b": 256, "c": 768}
    assert size == 1024


def test_a_fold_sees_every_byte_and_its_place() -> None:
    rows = FOLDED_AT_ONCE + 3
    tensor = torch.randint(0, 256, (rows * 8 * WIDTH + 5,), dtype=torch.uint8)
    first = fold(tensor)
    assert first.shape == (WIDTH + 5,)
    assert torch.equal(first, fold(tensor.clone()))
    for place in (0, 8 * WIDTH * FOLDED_AT_ONCE + 9, len(tensor) - 1):
        changed = tensor.clone()
        changed[place] ^= 0x80
        assert not torch.equal(first, fold(changed))
    exchanged = tensor.clone()
    exchanged[: 8 * WIDTH], exchanged[8 * WIDTH : 16 * WIDTH] = tensor[8 * WIDTH : 16 * WIDTH], tensor[: 8 * WIDTH]
    assert not torch.equal(first, fold(exchanged))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="folds on an accelerator")
def test_a_large_tensor_on_the_accelerator_has_the_same_digest_each_time() -> None:
    tensor = torch.randn(1 << 25, device="cuda")
    changed = tensor.clone()
    changed[12345] += 1
    assert digest({"x": tensor}) == digest({"x": tensor.clone()}) != digest({"x": changed})
    assert torch.equal(fold(tensor).cpu(), fold(tensor.cpu()))


TAKER = """
import sys, torch
from workers import vmm
from workers.judge import hosts
mapped = vmm.take(int(sys.argv[1]), int(sys.argv[2])).bytes()
assert int(mapped[:4].sum()) == 10, mapped[:4]
mapped[4:8] = 7
torch.cuda.synchronize()
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="shares memory of an accelerator")
def test_another_process_reads_and_writes_the_memory_behind_a_descriptor() -> None:
    mapping, fd = vmm.make(100)
    ours = mapping.bytes()
    ours[:8] = torch.tensor([1, 2, 3, 4, 0, 0, 0, 0], dtype=torch.uint8)
    torch.cuda.synchronize()
    subprocess.run([sys.executable, "-c", TAKER, str(fd), str(mapping.nbytes)], pass_fds=[fd], check=True, timeout=120)
    os.close(fd)
    assert ours[4:8].tolist() == [7, 7, 7, 7]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="waits for an accelerator")
def test_what_was_written_lies_on_the_device_before_a_host_is_asked() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        client = DeviceClient(process=None, sock=ours)  # type: ignore[arg-type]
        torch.cuda._sleep(200_000_000)
        written = torch.cuda.Event()  # type: ignore[no-untyped-call]
        written.record()  # type: ignore[no-untyped-call]
        assert not written.query()  # type: ignore[no-untyped-call]
        client._written()
        assert written.query()  # type: ignore[no-untyped-call]


def test_an_answer_that_is_coarser_where_it_was_recorded_is_told_from_one_whose_sums_ran_in_another_order() -> None:
    y = torch.randn(64, 64)
    ran = {"y": y, "mask": y > 0, "state:kv": y}
    assert differing({"y": y * (1 + 1e-3), "mask": y > 0, "state:kv": y + 1}, ran) is None
    assert differing({"y": y.to(torch.float8_e4m3fn).float(), "mask": y > 0, "state:kv": y}, ran) == "y"
    assert differing({"y": y, "mask": y > 0.2, "state:kv": y}, ran) == "mask"
    assert differing({"y": torch.full_like(y, float("nan")), "mask": y > 0, "state:kv": y}, ran) == "y"
