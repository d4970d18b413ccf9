"""What the machine is: the environment that implementations are told of, and the facts that an outcome carries."""

import functools
import os
import platform
from pathlib import Path

import torch

from engine.processor import processor
from engine.slots.kind import Environment
from workers.judge import accelerator

# Ceilings for physical floors on a CPU core: deliberately beyond what one core of today's processors can do
# (two 512-bit FMA ports at 5 GHz: 320 GFLOP/s in float32; 512 bytes a cycle out of the first-level cache).
CPU_CORE_PEAK_FLOPS = 400e9
CPU_CORE_PEAK_BYTES_PER_S = 2e12


# The same for memory of accelerators: above the data sheet of the fastest card of a name, and for cards without one above all.
PEAK_BYTES_PER_S = {"h200": 4.9e12, "h100": 4.0e12, "a100": 2.1e12, "l40s": 0.9e12, "l4": 0.31e12, "b200": 8e12}
ANY_PEAK_BYTES_PER_S = 8e12


def accelerator_name() -> str:
    """What the accelerator is called for short; empty where nobody knows."""
    name = torch.cuda.get_device_name().lower()
    return next((known for known in PEAK_BYTES_PER_S if known in name), "")


def machine_class() -> str:
    """The class of this machine: `SWAPBENCH_MACHINE_CLASS`, else named after its accelerator or processor."""
    named = os.environ.get("SWAPBENCH_MACHINE_CLASS")
    if named:
        return named
    if torch.cuda.is_available():
        return accelerator_name() or "cuda"
    return "cpu-arm" if platform.machine() in ("aarch64", "arm64") else "cpu-x86"


def threads() -> int:
    """How many threads a host computes with: `SWAPBENCH_THREADS`, by default 1, beside an accelerator up to 4.

    One, because two cores that other processes share give a spread that no number of pairs mends; beside an accelerator they
    only launch, and compile.
    """
    usual = min(4, max(1, (os.cpu_count() or 1) // 2)) if torch.cuda.is_available() else 1
    return max(1, int(os.environ.get("SWAPBENCH_THREADS", usual)))


def environment() -> Environment:
    """The environment of this machine."""
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        return Environment(
            machine_class=machine_class(),
            device="cuda",
            dtypes=("float32", "float16", "bfloat16"),
            sm=10 * major + minor,
            threads=threads(),
            peak_bytes_per_s=PEAK_BYTES_PER_S.get(accelerator_name(), ANY_PEAK_BYTES_PER_S),
            peak_flops=4e15,
            last_level_cache_bytes=torch.cuda.get_device_properties().L2_cache_size,
        )
    return Environment(
        machine_class=machine_class(),
        device="cpu",
        dtypes=("float32", "bfloat16"),
        threads=threads(),
        peak_bytes_per_s=CPU_CORE_PEAK_BYTES_PER_S * threads(),
        peak_flops=CPU_CORE_PEAK_FLOPS * threads(),
        last_level_cache_bytes=last_level_cache_bytes(),
    )


@functools.cache
def last_level_cache_bytes() -> int:
    """Size of the largest cache that Linux reports for processor 0, in bytes; 0 where it reports none."""
    largest = 0
    for size in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = size.read_text().strip()
        unit = {"K": 1024, "M": 1024**2, "G": 1024**3}.get(text[-1:], 1)
        largest = max(largest, int(text.rstrip("KMG")) * unit)
    return largest


@functools.cache
def processor_name() -> str:
    """The processor's name as Linux gives it."""
    return processor("model name") or platform.processor() or platform.machine()


def facts() -> dict[str, str | float]:
    """What is written beside every figure: machine, versions, threads."""
    found: dict[str, str | float] = {
        "machine class": machine_class(),
        "processor": processor_name(),
        "cores": float(os.cpu_count() or 1),
        "threads per host": float(threads()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.get_device_name()
        found["cuda"] = str(torch.version.cuda)
        given = accelerator.current()
        if given is not None:
            found["driver"] = given.driver()
    return found
