"""Measures the judge on a GPU: `python benchmarks/judge_h100.py --out FOLDER [--steps unit overhead ...]`.

Attempts through the sandbox, whose trees are made of this checkout. Each step runs in a process of its own with a time
limit, so that one which fails costs itself only; what it found lies in FOLDER as JSON, outcome files among it.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

COMMIT = "JUDGE_H100_COMMIT"
"""The commit of this tree, where git cannot tell."""
SLOT = "JUDGE_H100_SLOT"
"""Steps that run at once have users of their own for their hosts, as accelerators have."""
PATHS = {
    "norm": "engine/normalization/plain.py",
    "attention": "engine/attention/sdpa.py",
    "int8": "engine/quantization/int8wo.py",
}


def laid_out(folder: Path, path: str, change: Callable[[str], str]) -> Any:
    """Trees as a checkout would give them: this checkout's engine, and the same with one slot file changed or, from an empty text, added."""
    from workers.checkout import Trees

    trees = Trees(folder / "base", folder / "head")
    for tree in (trees.base, trees.head):
        shutil.copytree(ROOT / "engine", tree / "engine", ignore=shutil.ignore_patterns("__pycache__", "checkpoints"))
    before = (ROOT / path).read_text() if (ROOT / path).exists() else ""
    (trees.head / path).write_text(change(before))
    return trees


def attempt(out: Path, name: str, path: str, change: Callable[[str], str], **fields: Any) -> Any:
    """Makes an attempt and writes its outcome to `out`."""
    from engine.slots.header import kind_of_path
    from workers.attempt import make_attempt
    from workers.judge import hosts
    from workers.judge.machine import machine_class
    from workers.protocol import Job, SlotFile, encode

    ready: list[float] = []
    opened = hosts.Hosts.open

    def noted(self: Any, side: Any) -> Any:
        client = opened(self, side)
        ready.append(self.ready_seconds[-1])
        return client

    job = Job(
        attempt=name,
        token="0" * 64,
        repository="none: the trees are laid out here",
        base_sha="0" * 40,
        head_sha="1" * 40,
        head_ref="HEAD",
        files=(SlotFile(path, kind_of_path(path) or "attention", "modified" if (ROOT / path).exists() else "added"),),
        machine_class=machine_class(),
        **fields,
    )
    told: list[tuple[float, str]] = []
    began = time.monotonic()

    def tell(progress: Any) -> None:
        if progress.unit != "tests":
            told.append((time.monotonic() - began, progress.sentence))
            print(f"  {told[-1][0]:6.1f} s  {progress.sentence}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        trees = laid_out(Path(folder), path, change)
        began = time.monotonic()
        with (
            mock.patch.object(hosts.Hosts, "open", noted),
            mock.patch("workers.attempt.fetch"),
            mock.patch("workers.attempt.lay_out", return_value=trees),
        ):
            outcome = make_attempt(job, tell, Path(folder), slot=int(os.environ.get(SLOT, "0")))
    (out / f"{name}.json").write_text(encode(outcome))
    print(f"{name}: {outcome.status} in {time.monotonic() - began:.1f} s, isolation {outcome.isolation}")
    print(
        f"  stages {[(s.stage, s.seconds) for s in outcome.stages]}; hosts ready after {[round(s, 2) for s in ready]} s"
    )
    for item in outcome.implementations:
        print(
            f"  {item.name}: {item.status}, {item.speed}; {sum(t.outcome == 'passed' for t in item.tests)}/{len(item.tests)}"
        )
        print(f"  summary: {item.summary[:600]}")
        for reason in item.reasons[:6]:
            print(f"  {reason.stage} {reason.code} {reason.case}: {reason.sentence[:700]} {reason.next_step[-900:]}")
        if item.performance is not None:
            found = spread(item.performance, [at for at, sentence in told if "; the next look" in sentence])
            found["host ready, s"] = [round(seconds, 3) for seconds in ready]
            machine = outcome.environment | {"commit": commit()}
            (out / f"{name}-figures.json").write_text(json.dumps({"machine": machine, **found}, indent=1))
    for reason in outcome.reasons:
        print(f"  {reason.code}: {reason.sentence[:1500]}")
    return outcome


def commit() -> str:
    """The commit of this tree, or "unknown" where nobody tells."""
    told = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return os.environ.get(COMMIT) or told.stdout.strip() or "unknown"


def deviation(values: list[float]) -> float | None:
    """The standard deviation; None of fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def spread(performance: Any, ends: list[float]) -> dict[str, Any]:
    """Prints and returns medians, mean and standard deviation of ln(base / head) by case and of the gate numbers, and seconds a pair.

    `ends`: when each pair was complete, in seconds. The first pair's own time is not known: the stage's preparations come before it.
    """
    from math import log

    pairs = performance.pairs
    cases = {}
    for case in pairs[0].base if pairs else ():
        ratios = [log(pair.base[case] / pair.head[case]) for pair in pairs]
        cases[case] = {
            "median, ms": 1e3 * statistics.median(pair.base[case] for pair in pairs),
            "calls a process": len(pairs[0].base_samples.get(case, ())),
            "mean ln(base/head)": statistics.mean(ratios),
            "standard deviation": deviation(ratios),
        }
        print(f"  {case}: {cases[case]}")
    gates = [statistics.mean(log(pair.base[case] / pair.head[case]) for case in pair.base) for pair in pairs]
    taken = [later - earlier for earlier, later in itertools.pairwise(ends)]
    found = {
        "pairs": len(pairs),
        "gate numbers": gates,
        "gate mean": statistics.mean(gates) if gates else None,
        "gate standard deviation": deviation(gates),
        "seconds a pair, median": statistics.median(taken) if taken else None,
        "seconds a pair": taken,
        "until the first pair was complete, s": ends[0] if ends else None,
        "repeated": [reason for pair in pairs for reason in pair.repeated],
        "decision": performance.decision,
        "why": performance.why,
        "cases": cases,
    }
    print("  " + json.dumps({name: value for name, value in found.items() if name != "cases"}))
    return found


def same(text: str) -> str:
    """The file with a comment more: the same code under another hash."""
    return text + "\n# The same.\n"


def only_bf16(text: str) -> str:
    """The file for one dtype only, so that little has to be compiled."""
    return text.replace('["float32", "float16", "bfloat16"]', '["bfloat16"]')


def unit(out: Path) -> None:
    """The unit suite for two kinds of the engine's own."""
    attempt(out, "unit-norm", PATHS["norm"], same, suites=("unit",))
    attempt(out, "unit-attention", PATHS["attention"], same, suites=("unit",))


def triton(out: Path) -> None:
    """The unit suite for the Triton kernels: compilation inside the sandbox."""
    attempt(out, "unit-norm-triton", "engine/normalization/fused.py", same, suites=("unit",))
    attempt(out, "unit-attention-triton", "engine/attention/paged.py", same, suites=("unit",))


def integration(out: Path) -> None:
    """The integration suite for the default normalization."""
    attempt(out, "integration-norm", PATHS["norm"], same, suites=("integration",))


def bad(out: Path) -> None:
    """Files that must not pass: one that answers before its work is done, one that writes to its input, one that is wrong."""
    early = "\nimport torch.cuda\ntorch.cuda.synchronize = torch._C._cuda_synchronize = lambda *_: None\n"
    slow = "        torch.cuda._sleep(20_000_000)\n"
    marker = "        scale = torch.rsqrt"
    attempt(out, "bad-early", PATHS["norm"], lambda t: t.replace(marker, slow + marker) + early, suites=("unit",))
    attempt(
        out, "bad-writes", PATHS["norm"], lambda t: t.replace(marker, "        x.zero_()\n" + marker), suites=("unit",)
    )
    attempt(
        out,
        "bad-wrong",
        PATHS["norm"],
        lambda t: t.replace("* weight.float()", "* weight.float() * 1.02"),
        suites=("unit",),
    )


def compiled(out: Path) -> None:
    """torch.compile and a CUDA graph inside the sandbox."""
    attempt(
        out,
        "unit-norm-compiled",
        PATHS["norm"],
        lambda t: only_bf16(t).replace("    def forward", "    @torch.compile(dynamic=True)\n    def forward"),
        suites=("unit",),
    )
    # Where the call itself is recorded, as decoding is, a graph of one's own cannot be.
    graph = (
        "        if not torch.cuda.is_current_stream_capturing():\n"
        "            side = torch.zeros(64, device=x.device)\n"
        "            graph = torch.cuda.CUDAGraph()\n"
        "            with torch.cuda.graph(graph):\n"
        "                side += 1\n"
        "            graph.replay()\n"
        "            wide = wide + (side[0] - 1)\n"
    )
    marker = "        scale = torch.rsqrt"
    attempt(
        out, "unit-norm-graph", PATHS["norm"], lambda t: only_bf16(t).replace(marker, graph + marker), suites=("unit",)
    )


def time_of(work: Callable[[], Any]) -> float:
    """Median seconds of `work` with a wait for the device after it."""
    import torch

    taken = []
    with torch.inference_mode():
        for _ in range(200):
            torch.cuda.synchronize()
            began = time.perf_counter()
            work()
            torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


# What a slot file of attention does besides, to have a host tell the milliseconds between two events of each call after it was answered.
TELLS = """

def _tells():
    import sys

    import torch

    host = sys.modules["__main__"]
    compute = host.compute

    class Told:
        def __init__(self):
            self.began, self.ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))

        def __del__(self):
            sys.stderr.write(f"{self.began.elapsed_time(self.ended)} ms between events\\n")

    def between_events(driver, message, *rest):
        if message.operation == host.NOTHING:
            return compute(driver, message, *rest)
        told = Told()
        told.began.record()
        lives = compute(driver, message, *rest)
        told.ended.record()
        return lives, told

    host.compute = between_events


_tells()
"""
TOLD = re.compile(r"^([0-9.]+) ms between events$", re.MULTILINE)


def overhead(out: Path) -> None:
    """The judge's time of calls of each performance case beside CUDA events of the same work in the judge's own process, in turns;
    attention, which is not replayed from a recording, also beside events of the very calls in the host; and an empty call."""
    from engine.slots.kind import kind_named
    from engine.slots.registry import load_file, read_header
    from engine.slots.source import Source
    from workers.judge import machine
    from workers.judge.device import empty_call
    from workers.judge.furnace import Furnace
    from workers.judge.hosts import Hosts, Side
    from workers.sandbox import best_level

    where = machine.environment()
    furnace = Furnace()
    hosts = Hosts(best_level(), where.threads, device="cuda")
    # Host and judge on processors as in an attempt: what is launched from Python takes as long as its processor does.
    hosts.step_aside()
    found: dict[str, Any] = {}
    folder = tempfile.TemporaryDirectory()
    tells = laid_out(Path(folder.name), PATHS["attention"], lambda source: source + TELLS).head
    # The user of a host must be able to enter what is bound for it.
    Path(folder.name).chmod(0o755)
    for kind_name in ("attention", "normalization", "activation"):
        kind = kind_named(kind_name)
        path = f"engine/{kind_name}/{kind.default}.py"
        tree = tells if kind_name == "attention" else ROOT
        header = read_header(ROOT / path)
        _, implementation = load_file(ROOT / path)
        driver = kind.driver(implementation)
        source = Source(os.urandom(32))
        for case in kind.cases("performance", header, where):
            # While no host is alive.
            held = kind.held(case, source.child(case.name, "held"))
            hosts.refills.learn(kind.draw(case, held, source.child(case.name, 0)).inputs)
            hosts.refills.learn(empty_call().inputs)
            client = hosts.open(Side(tree, path, header.name))
            hosts.onto_free_cores(client)
            figures = beside_events(kind, driver, case, held, client, source, furnace, kind.recordable(header))
            found[f"{kind_name} {case.name}"] = figures
            print(kind_name, case.name, {key: round(value, 4) for key, value in figures.items()}, flush=True)
            if kind_name == "normalization" and "one row, us" not in found:
                found["one row, us"] = one_row(client, driver)
                print("one row normalized", found["one row, us"], flush=True)
            hosts.end()
    hosts.close()
    folder.cleanup()
    ahead = Hosts(best_level(), where.threads, device="cuda")
    side = Side(ROOT, PATHS["norm"], "plain")
    ahead.open(side)
    ahead.start_ahead(side)
    time.sleep(5)
    ahead.open(side)
    found["host_ready_s"] = {"alone": ahead.ready_seconds[0], "started ahead": ahead.ready_seconds[1]}
    print(found["host_ready_s"])
    ahead.close()
    found["machine"] = machine.facts() | {"commit": commit()}
    (out / "overhead.json").write_text(json.dumps(found, indent=1))


ROUNDS_BESIDE = 7


def beside_events(
    kind: Any, driver: Any, case: Any, held: Any, client: Any, source: Any, furnace: Any, recordable: bool
) -> dict[str, float]:
    """Medians of calls drawn anew, each made once by the host under the judge's clock and once here between two events; ms."""
    import torch

    from workers.host.__main__ import copy_out
    from workers.host.recording import as_graph
    from workers.judge.device import beside

    client.hold(held)
    mine = {name: item.tensor.clone() for name, item in held.items() if item.access != "private"}
    first = kind.draw(case, held, source.child(case.name, 0))
    inputs = {name: torch.empty_like(tensor, device="cuda") for name, tensor in first.inputs.items()}
    outs = {name: torch.empty(s.shape, dtype=s.torch_dtype, device="cuda") for name, s in first.outputs.items()}

    def work() -> None:
        if hasattr(driver, "into"):
            driver.into = outs
        copy_out(driver.run(first.operation, first.params, inputs, mine), outs)

    def here(call: Any, doing: Any) -> float:
        for name, tensor in call.inputs.items():
            inputs[name].copy_(tensor)
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        began.record()
        doing()
        ended.record()
        torch.cuda.synchronize()
        return float(began.elapsed_time(ended))

    def judged(call: Any) -> tuple[float, float, float]:
        answer = client.timed(client.ready(call), False)
        return 1e3 * answer.seconds, 1e3 * client.last_look_seconds, 1e3 * client.last_refill_seconds

    rows = []
    with torch.inference_mode():
        here(first, work)
        doing = as_graph(work) if first.recorded and recordable else work
        furnace.heat(0.3)
        empty = client.empty_seconds()
        tries = [judged(kind.draw(case, held, source.child(case.name, "try", n))) for n in range(4)][1:]
        client.beside_seconds = beside(empty, [look / 1e3 for _, look, _ in tries], min(tries)[0] / 1e3)
        furnace.heat(0.3)
        for number in range(ROUNDS_BESIDE + 1):
            call = kind.draw(case, held, source.child(case.name, number))
            rows.append((here(call, doing), *judged(call)))
    events, seconds, look, refill = (statistics.median(column) for column in zip(*rows[1:], strict=True))
    # What the host said last is read by a thread.
    time.sleep(0.1)
    told = [float(ms) for ms in TOLD.findall(client.process.stderr_tail())][-ROUNDS_BESIDE:]
    # Of the same call, which in the host and in this process can take one of two lengths for long.
    in_host = (
        {
            "events_in_host_ms": statistics.median(told),
            "overhead_in_host": statistics.median(row[1] / ms for row, ms in zip(rows[1:], told, strict=True)) - 1,
        }
        if told
        else {}
    )
    return in_host | {
        "events_ms": events,
        "judged_ms": seconds,
        "overhead": seconds / events - 1,
        "taken_off_ms": 1e3 * client.beside_seconds,
        "look_ms": look,
        "refill_here_ms": refill,
    }


def one_row(client: Any, driver: Any) -> dict[str, float]:
    """What one row normalized takes by the judge's clock, by part, and in this process; us."""
    import torch

    from engine.slots.kind import Call, Held, TensorSpec

    x = torch.randn(1, 64, device="cuda", dtype=torch.bfloat16)
    weight = torch.ones(1, 64, device="cuda", dtype=x.dtype)
    client.hold({"weight": Held(weight, "read")})
    client.beside_seconds = 0.0
    params: dict[str, Any] = {"eps": 1e-5, "repeat": 1, "weight": "weight"}
    spec = TensorSpec.of(x)
    small = Call("norm", params, {"x": x}, {"y": spec, "residual": spec})
    parts = []
    for _ in range(200):
        answer = client.timed(client.ready(small), False)
        parts.append((answer.seconds, client.last_refill_seconds, client.last_look_seconds))
    trip = {
        key: 1e6 * statistics.median(column)
        for key, column in zip(("all", "refill", "sample"), zip(*parts, strict=True), strict=True)
    }
    # The places of the case before are of another form.
    driver.into = {}
    here = time_of(partial(driver.run, "norm", params, {"x": x}, {"weight": weight}))
    return trip | parts_of(client, small) | {"in the judge's process": 1e6 * here}


def parts_of(client: Any, call: Any) -> dict[str, float]:
    """Medians in us: a message and its answer with the host awake and asleep, and `call` with and without waking the host before."""
    from workers import wire

    def median_us(pause: float, work: Callable[[], float]) -> float:
        taken = []
        for _ in range(200):
            time.sleep(pause)
            taken.append(work())
        return 1e6 * statistics.median(taken)

    def message() -> float:
        began = time.perf_counter()
        client._ask(wire.Hold([], []), [], 0, time.monotonic() + 5, "a message")
        return time.perf_counter() - began

    def timed() -> float:
        return float(client.timed(client.ready(call), False).seconds)

    found = {"message, awake": median_us(0, message), "message, asleep": median_us(0.005, message)}
    found["call, host woken before"] = median_us(0, timed)
    with mock.patch.object(client, "_ask", return_value=wire.Kept()):
        found["call, host asleep"] = median_us(0, timed)
    return found


def lengths(out: Path) -> None:
    """Seconds of SDPA for one decoding sequence at lengths never seen before and at the same ones again, by kernel."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    from workers.judge import machine

    def at(length: int) -> float:
        query = torch.randn(1, 32, 1, 128, device="cuda", dtype=torch.bfloat16)
        keys, values = torch.randn(2, 1, 8, length, 128, device="cuda", dtype=torch.bfloat16)
        torch.cuda.synchronize()
        began = time.perf_counter()
        scaled_dot_product_attention(query, keys, values, enable_gqa=True)
        torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - began)

    found: dict[str, Any] = {"machine": machine.facts() | {"commit": commit()}}
    choices: dict[str, Any] = {
        "as PyTorch chooses": contextlib.nullcontext(),
        "flash": sdpa_kernel(SDPBackend.FLASH_ATTENTION),
    }
    for name, choice in choices.items():
        with choice:
            at(300)
            fresh = [at(400 + n) for n in range(24)]
            again = [at(400 + n) for n in range(24)]
        found[name] = {"new length, ms": statistics.median(fresh), "same length again, ms": statistics.median(again)}
        print(name, found[name], flush=True)
    (out / "lengths.json").write_text(json.dumps(found, indent=1))


def aa(out: Path) -> None:
    """A/A: the default attention against itself on four cases, eight pairs at most."""
    from engine.slots.kinds import attention

    few = ("prefill-8k", "prefill-varlen", "decode-b16", "decode-b128")
    with mock.patch.object(attention, "CUDA", tuple(w for w in attention.CUDA if w.name.startswith(few))):
        against_itself(out, "aa-attention", PATHS["attention"], 8)


def aa_all(out: Path) -> None:
    """A/A: the default attention against itself on all cases, eight pairs at most."""
    against_itself(out, "aa-attention-all", PATHS["attention"], 8)


def aa_int8(out: Path) -> None:
    """A/A: int8 weights against themselves, eight pairs at most."""
    against_itself(out, "aa-int8", PATHS["int8"], 8)


def aa_norm(out: Path) -> None:
    """A/A: the default normalization against itself, twelve pairs at most."""
    against_itself(out, "aa-norm", PATHS["norm"], 12)


def against_itself(out: Path, name: str, path: str, pairs: int) -> None:
    """The performance stage of the same code twice, in as many seconds as JUDGE_H100_SECONDS allows."""
    from workers.protocol import Policy

    seconds = float(os.environ.get("JUDGE_H100_SECONDS", "240"))
    attempt(
        out,
        name,
        path,
        same,
        suites=("performance",),
        policy=Policy(max_pairs=pairs),
        stage_seconds={"performance": seconds},
    )


def ballast(out: Path) -> None:
    """What it takes to take the accelerator's memory away, and what the engine's own quantizations need within it, judged under other names."""
    import torch

    from workers import vmm
    from workers.judge import machine
    from workers.protocol import Policy

    torch.zeros(1, device="cuda")
    found: dict[str, Any] = {"taken": []}
    for _ in range(4):
        free, _ = torch.cuda.mem_get_info()
        piece, began = vmm.Reservation(), time.perf_counter()
        nbytes = piece.take(free - (1 << 30))
        took = time.perf_counter()
        piece.close()
        found["taken"].append({"bytes": nbytes, "s": took - began, "given back, s": time.perf_counter() - took})
    for name in ("int8wo", "fp8wo", "int4wo"):
        source = (ROOT / f"engine/quantization/{name}.py").read_text().replace(f'"{name}"', f'"{name}-renamed"')
        outcome = attempt(
            out,
            f"ballast-{name}",
            f"engine/quantization/{name}_renamed.py",
            lambda _, source=source: source,  # type: ignore[misc]
            suites=("performance",),
            policy=Policy(max_pairs=8),
            stage_seconds={"performance": float(os.environ.get("JUDGE_H100_SECONDS", "80"))},
        )
        found[name] = kept_and_allowed(outcome)
        print(name, found[name], flush=True)
    found["machine"] = machine.facts() | {"commit": commit()}
    (out / "ballast.json").write_text(json.dumps(found, indent=1))


def kept_and_allowed(outcome: Any) -> dict[str, dict[str, list[int]]]:
    """By side and case, the most bytes that a host had between its calls, and those that it may have."""
    found: dict[str, dict[str, list[int]]] = {}
    for text in (text for name, text in outcome.artifacts.items() if name.endswith("benchmark.json")):
        for item in json.loads(text)["benchmarks"]:
            turn = re.fullmatch(r"pair\d+-(base|head)(?:-\d+)?-(.+)", item["param"])
            figures = item["extra_info"].get("bytes beside what is lent, kept and allowed")
            if figures is not None and turn is not None:
                cases = found.setdefault(turn[1], {})
                cases[turn[2]] = max(cases.get(turn[2], figures), figures)
    return found


def faster(out: Path) -> None:
    """A change that is faster: one kernel in place of the formula."""
    from workers.protocol import Policy

    fused = (ROOT / "engine/normalization/fused.py").read_text().replace('"fused"', '"plain"')
    attempt(
        out, "faster-norm", PATHS["norm"], lambda _: fused, suites=("unit", "performance"), policy=Policy(max_pairs=8)
    )


def sample(file: Path, out: Path) -> None:
    """A whole attempt on a slot file of the demo's pull requests."""
    path = str(file.relative_to(file.parents[2]))
    attempt(out, f"sample-{file.stem.replace('_', '-')}", path, lambda _: file.read_text())


def samples() -> dict[str, Callable[[Path], None]]:
    """A step for each sample that runs on this kind of accelerator, named after the number of its pull request."""
    from engine.slots.header import kind_of_path
    from engine.slots.registry import read_header

    files = sorted((ROOT / "demo" / "pulls").glob("*/files/engine/*/*.py"))
    return {
        f"sample_{file.parents[3].name[:2]}": partial(sample, file)
        for file in files
        if kind_of_path(str(file.relative_to(file.parents[2]))) and "cuda" in read_header(file).devices
    }


STEPS: dict[str, Callable[[Path], None]] = {
    step.__name__: step
    for step in (
        unit,
        bad,
        triton,
        compiled,
        overhead,
        lengths,
        aa_norm,
        aa,
        aa_all,
        aa_int8,
        ballast,
        faster,
        integration,
    )
} | samples()


def run_together(names: list[str], seconds: float, out: Path) -> int:
    """Runs steps at once, each in a process of its own, and prints what each said. Returns 1 where one failed or ran out of time."""
    began = time.monotonic()
    children = []
    for slot, name in enumerate(names):
        said = (out / f"{name}.txt").open("w+")
        command = [sys.executable, "-u", __file__, "--out", str(out), "--one", name]
        environment = os.environ | {SLOT: str(int(os.environ.get(SLOT, "0")) + slot)}
        child = subprocess.Popen(command, stdout=said, stderr=said, env=environment, start_new_session=True)
        children.append((name, child, said))
    failed = 0
    for name, child, said in children:
        late = ""
        try:
            failed |= child.wait(max(0.1, seconds - (time.monotonic() - began))) != 0
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            late, failed = " (ran out of time)", 1
        said.seek(0)
        print(f"== {name}{late}, after {time.monotonic() - began:.1f} s\n{said.read()}", flush=True)
        said.close()
    return failed


def main() -> int:
    """Runs the steps one after the other. Exit status 1 where one of them raised or ran out of time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--steps",
        nargs="*",
        default=list(STEPS),
        help="name, name=seconds, or several at once as name+name=seconds, of " + ", ".join(STEPS),
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.one:
        try:
            STEPS[options.one](options.out)
        except BaseException:
            traceback.print_exc()
            return 1
        return 0
    failed = 0
    for step in options.steps:
        names, _, seconds = step.partition("=")
        failed |= run_together(names.split("+"), float(seconds or 120), options.out)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
