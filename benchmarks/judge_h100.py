"""Measures the judge on a GPU: `python benchmarks/judge_h100.py --out FOLDER [--steps unit overhead ...]`.

Attempts through the sandbox, whose trees are made of this checkout. Each step runs in a process of its own with a time
limit, so that one which fails costs itself only; what it found lies in FOLDER as JSON, outcome files among it.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PATHS = {"norm": "engine/normalization/plain.py", "attention": "engine/attention/sdpa.py"}


def laid_out(folder: Path, path: str, change: Callable[[str], str]) -> Any:
    """Trees as a checkout would give them: this checkout's engine, and the same with one slot file changed."""
    from workers.checkout import Trees

    trees = Trees(folder / "base", folder / "head")
    for tree in (trees.base, trees.head):
        shutil.copytree(ROOT / "engine", tree / "engine", ignore=shutil.ignore_patterns("__pycache__", "checkpoints"))
    (trees.head / path).write_text(change((ROOT / path).read_text()))
    return trees


def attempt(out: Path, name: str, path: str, change: Callable[[str], str], **fields: Any) -> Any:
    """Makes an attempt and writes its outcome to `out`."""
    from engine.slots.header import kind_of_path
    from workers.attempt import make_attempt
    from workers.judge import hosts
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
        files=(SlotFile(path, kind_of_path(path) or "attention", "modified"),),
        machine_class="h100",
        **fields,
    )
    with tempfile.TemporaryDirectory() as folder:
        trees = laid_out(Path(folder), path, change)
        began = time.monotonic()
        with (
            mock.patch.object(hosts.Hosts, "open", noted),
            mock.patch("workers.attempt.fetch"),
            mock.patch("workers.attempt.lay_out", return_value=trees),
        ):
            outcome = make_attempt(job, lambda _: None, Path(folder))
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
            spread(item.performance)
    for reason in outcome.reasons:
        print(f"  {reason.code}: {reason.sentence[:1500]}")
    return outcome


def spread(performance: Any) -> None:
    """Prints, for each case, medians and the standard deviation of ln(base / head) over the pairs."""
    from math import log

    pairs = performance.pairs
    for case in pairs[0].base if pairs else ():
        ratios = [log(pair.base[case] / pair.head[case]) for pair in pairs]
        deviation = statistics.stdev(ratios) if len(ratios) > 1 else float("nan")
        median = statistics.median(pair.base[case] for pair in pairs)
        print(f"  {case}: {1e3 * median:.3f} ms, bias {statistics.mean(ratios):+.4f}, spread {deviation:.4f}")
    gates = [statistics.mean(log(pair.base[case] / pair.head[case]) for case in pair.base) for pair in pairs]
    print(f"  gate numbers {[round(gate, 4) for gate in gates]}")
    repeated = [reason for pair in pairs for reason in pair.repeated]
    print(f"  repeated {len(repeated)} times: {' | '.join(repeated)[:300]}")
    print(f"  {performance.decision}: {performance.why[:400]}")


def same(text: str) -> str:
    """The file with a comment more: the same code under another hash."""
    return text + "\n# The same.\n"


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
    early = "\nimport torch.cuda\ntorch.cuda.synchronize = lambda *_: None\n"
    slow = "        for _ in range(300): wide = wide + 0 * (wide @ torch.ones(x.shape[-1], 1, device=x.device))\n"
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
        lambda t: t.replace("    def forward", "    @torch.compile(dynamic=True)\n    def forward"),
        suites=("unit",),
    )
    graph = (
        "        side = torch.zeros(64, device=x.device)\n"
        "        graph = torch.cuda.CUDAGraph()\n"
        "        with torch.cuda.graph(graph):\n"
        "            side += 1\n"
        "        graph.replay()\n"
        "        wide = wide + (side[0] - 1)\n"
    )
    marker = "        scale = torch.rsqrt"
    attempt(out, "unit-norm-graph", PATHS["norm"], lambda t: t.replace(marker, graph + marker), suites=("unit",))


def overhead(out: Path) -> None:
    """Round trip of an empty call, and the judge's time of real calls against CUDA events of the same work in the judge."""
    import torch

    from engine.slots.kind import Call, TensorSpec, kind_named
    from engine.slots.registry import load_file, read_header
    from engine.slots.source import Source
    from workers.judge import machine
    from workers.judge.furnace import Furnace
    from workers.judge.hosts import Hosts, Side
    from workers.sandbox import best_level

    where = machine.environment()
    furnace = Furnace()
    hosts = Hosts(best_level(), where.threads, device="cuda")
    found: dict[str, Any] = {}
    for kind_name, path in PATHS.items():
        kind = kind_named("normalization" if kind_name == "norm" else kind_name)
        header = read_header(ROOT / path)
        _, implementation = load_file(ROOT / path)
        driver = kind.driver(implementation)
        cases = kind.cases("performance", header, where)[:2]
        source = Source(os.urandom(32))
        for case in cases:
            held = kind.held(case, source.child(case.name, "held"))
            calls = [kind.draw(case, held, source.child(case.name, n)) for n in range(12)]
            refill = hosts.refills.learn(calls[0].inputs)
            direct = []
            tensors = {name: item.tensor for name, item in held.items() if item.access != "private"}
            outs = {
                name: torch.empty(s.shape, dtype=s.torch_dtype, device="cuda") for name, s in calls[0].outputs.items()
            }
            furnace.heat(0.3)
            with torch.inference_mode():
                for call in calls:
                    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                    torch.cuda.synchronize()
                    first.record()
                    got = driver.run(call.operation, call.params, call.inputs, tensors)
                    for name, target in outs.items():
                        target.copy_(got[name])
                    last.record()
                    torch.cuda.synchronize()
                    direct.append(first.elapsed_time(last) / 1e3)
                    del got
            client = hosts.open(Side(ROOT, path, header.name))
            client.hold(held)
            furnace.heat(0.3)
            judged, refills = [], []
            for call in calls:
                judged.append(client.timed(client.ready(call), False).seconds)
                refills.append(client.last_refill_seconds)
            events, seconds = statistics.median(direct[2:]), statistics.median(judged[2:])
            found[f"{kind_name} {case.name}"] = {
                "events_ms": 1e3 * events,
                "judged_ms": 1e3 * seconds,
                "overhead": seconds / events - 1,
                "refill_idle_ms": 1e3 * refill,
                "refill_here_ms": 1e3 * statistics.median(refills[2:]),
                "host_ready_s": hosts.ready_seconds[-1],
            }
            print(
                kind_name, case.name, {k: round(v, 4) for k, v in found[f"{kind_name} {case.name}"].items()}, flush=True
            )
            if kind_name == "norm" and "round_trip_us" not in found:
                x = torch.randn(1, 64, device="cuda", dtype=torch.bfloat16)
                spec = TensorSpec.of(x)
                params = {"eps": 1e-5, "repeat": 1, "weight": "weight"}
                client.hold(
                    {"weight": held["weight"].__class__(torch.ones(1, 64, device="cuda", dtype=x.dtype), "read")}
                )
                small = Call("norm", params, {"x": x}, {"y": spec, "residual": spec})
                times = sorted(client.timed(client.ready(small), False).seconds for _ in range(400))
                found["round_trip_us"] = 1e6 * times[200]
                print(
                    f"one row normalized: median {1e6 * times[200]:.0f} us, least {1e6 * times[0]:.0f} us, refill included"
                )
            hosts.close()
    ahead = Hosts(best_level(), where.threads, device="cuda")
    side = Side(ROOT, PATHS["norm"], "plain")
    ahead.open(side)
    ahead.start_ahead(side)
    time.sleep(5)
    ahead.open(side)
    found["host_ready_s"] = {"alone": ahead.ready_seconds[0], "started ahead": ahead.ready_seconds[1]}
    print(found["host_ready_s"])
    ahead.close()
    (out / "overhead.json").write_text(json.dumps(found, indent=1))


def aa(out: Path) -> None:
    """A/A: the default attention against itself, eight pairs at most."""
    from engine.slots.kinds import attention
    from workers.protocol import Policy

    few = tuple(w for w in attention.CUDA if w.name.startswith(("prefill-8k", "decode-b16", "decode-b128")))
    with mock.patch.object(attention, "CUDA", few):
        attempt(
            out, "aa-attention", PATHS["attention"], same, suites=("unit", "performance"), policy=Policy(max_pairs=8)
        )


def aa_norm(out: Path) -> None:
    """A/A: the default normalization against itself, eight pairs at most."""
    from workers.protocol import Policy

    attempt(out, "aa-norm", PATHS["norm"], same, suites=("performance",), policy=Policy(max_pairs=8))


def faster(out: Path) -> None:
    """A change that is faster: one kernel in place of the formula."""
    from workers.protocol import Policy

    fused = (ROOT / "engine/normalization/fused.py").read_text().replace('"fused"', '"plain"')
    attempt(
        out, "faster-norm", PATHS["norm"], lambda _: fused, suites=("unit", "performance"), policy=Policy(max_pairs=8)
    )


STEPS: dict[str, Callable[[Path], None]] = {
    step.__name__: step for step in (unit, bad, triton, compiled, overhead, aa_norm, aa, faster, integration)
}


def main() -> int:
    """Runs the steps one after the other. Exit status 1 where one of them raised or ran out of time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", nargs="*", default=list(STEPS), help="name or name=seconds, of " + ", ".join(STEPS))
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
        name, _, seconds = step.partition("=")
        print(f"== {name}", flush=True)
        began = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-u", __file__, "--out", str(options.out), "--one", name], start_new_session=True
        )
        try:
            failed |= child.wait(float(seconds or 120)) != 0
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            print(f"{name} ran out of time")
            failed = 1
        print(f"== {name} took {time.monotonic() - began:.1f} s", flush=True)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
