"""Work that a host records once and replays."""

import mmap
import os
import socket
import threading

import msgspec
import pytest
import torch

from engine.slots.registry import SlotError
from workers.host.__main__ import serve
from workers.host.recording import Recording, Work, as_graph
from workers.wire import Buffer, Done, Hold, Load, Region, Run, Stop, receive_at_judge, send

on_accelerator = pytest.mark.skipif(not torch.cuda.is_available(), reason="records on an accelerator")


def asking(seq: int = 1, offset: int = 0, eps: float = 1e-5) -> Run:
    region = Region("x", 3, offset, (4,), "float32")
    return Run(seq, "norm", {"eps": eps}, [], [region], [region], record=True)


class Recorder:
    """Counts what it is asked to record, and what is replayed."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, work: Work) -> Work:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            work()

        return replay


def test_the_same_request_on_the_same_memory_is_recorded_once() -> None:
    recorder, done = Recorder(), []
    recording = Recording(recorder)
    for seq in range(3):
        recording.run(asking(seq), lambda: done.append(1))
    assert (recorder.recorded, recorder.replayed, len(done)) == (1, 3, 3)


@pytest.mark.parametrize("other", [asking(offset=16), asking(eps=1e-6)])
def test_another_request_is_recorded_anew(other: Run) -> None:
    recorder = Recorder()
    recording = Recording(recorder)
    recording.run(asking(), lambda: None)
    recording.run(other, lambda: None)
    assert recorder.recorded == 2


def test_what_was_recorded_is_forgotten_with_what_is_held() -> None:
    recorder = Recorder()
    recording = Recording(recorder)
    recording.run(asking(), lambda: None)
    recording.forget()
    recording.run(asking(), lambda: None)
    assert recorder.recorded == 2


def test_what_fails_is_not_taken_for_recorded() -> None:
    def failing(work: Work) -> Work:
        raise SlotError("It cannot be recorded.")

    recording = Recording(failing)
    for _ in range(2):
        with pytest.raises(SlotError):
            recording.run(asking(), lambda: None)


@on_accelerator
def test_a_replay_computes_with_what_lies_there_now() -> None:
    x = torch.ones(4, device="cuda")
    y = torch.zeros(4, device="cuda")
    ran = []

    def work() -> None:
        ran.append(1)
        y.copy_(2 * x)

    replay = as_graph(work)
    before = len(ran)
    x.fill_(21.0)
    replay()
    torch.cuda.synchronize()
    assert (y.tolist(), len(ran)) == ([42.0] * 4, before)


@on_accelerator
def test_what_waits_for_the_device_is_refused_with_a_sentence() -> None:
    x = torch.ones(4, device="cuda")
    with pytest.raises(SlotError, match="cannot be recorded"):
        as_graph(lambda: x.mul_(x.sum().item()))
    torch.cuda.synchronize()
    as_graph(lambda: x.mul_(1.0))()


class Doubling:
    """A driver whose operation doubles x."""

    def prepare(self, operation: str, params: object, inputs: object) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def run(
        self, operation: str, params: object, inputs: dict[str, torch.Tensor], held: object
    ) -> dict[str, torch.Tensor]:
        return {"y": 2 * inputs["x"]}


@pytest.mark.parametrize(("recordable", "recorded"), [(True, 2), (False, 0)])
def test_a_host_records_what_it_may_and_forgets_it_with_what_it_holds(recordable: bool, recorded: int) -> None:
    recorder = Recorder()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(30)
    host = threading.Thread(
        target=serve, args=(theirs, lambda _: (Doubling(), recordable), Recording(recorder)), daemon=True
    )
    host.start()
    fd = os.memfd_create("buffer")
    os.ftruncate(fd, 4096)
    memory = torch.frombuffer(mmap.mmap(fd, 4096), dtype=torch.float32)
    x, y = Region("x", 7, 0, (4,), "float32"), Region("y", 7, 64, (4,), "float32")
    hold = Hold([Buffer(7, 4096, True)], [Region("w", 7, 128, (4,), "float32")])

    def ask(message: msgspec.Struct, fds: tuple[int, ...] = ()) -> object:
        send(ours, message, fds)
        return receive_at_judge(ours)

    ask(Load("nowhere.py", 1, "cpu"))
    ask(hold, (fd,))
    for value in (1.0, 2.0):
        memory[:4] = value
        assert isinstance(ask(Run(1, "double", {}, [], [x], [y], record=True)), Done)
        assert memory[16:20].tolist() == [2 * value] * 4
    ask(Hold([], [Region("w", 7, 192, (4,), "float32")]))
    assert isinstance(ask(Run(2, "double", {}, [], [x], [y], record=True)), Done)
    assert recorder.recorded == recorded
    send(ours, Stop())
    host.join(timeout=30)
    for end in (ours, theirs):
        end.close()
    os.close(fd)
    assert not host.is_alive()
