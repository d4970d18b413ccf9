"""The accelerator as the judge sees it from outside the host: NVML by ctypes, and what a host needs to find it.

NVML's calls and structures are those of nvml.h (NVIDIA Management Library API); nothing is ever set, only read.
"""

import ctypes
import functools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# nvmlClocksEventReasons that mean: something else than the work itself holds the clock down. A software power cap is not among
# them: a long matrix product runs into it on a sound card (an H100 under attention: 690 W, 1980 -> 1710 MHz).
HELD_DOWN = {
    0x08: "hardware slowdown",
    0x20: "thermal slowdown by software",
    0x40: "thermal slowdown by hardware",
    0x80: "power brake",
}
POWER_CAP = 0x04
_SM_CLOCK = 1
_MAX_PROCESSES = 64
_NOT_SUPPORTED = "the driver does not tell"


class _Running(ctypes.Structure):
    _fields_ = [
        ("pid", ctypes.c_uint),
        ("bytes", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    ]


@dataclass(frozen=True)
class Sight:
    """The accelerator at one moment; None where the driver does not tell. `pids` as this process's namespace numbers them."""

    sm_mhz: int | None
    celsius: int | None
    watts: float | None
    reasons: int
    pids: tuple[int, ...] | None

    @property
    def held_down(self) -> tuple[str, ...]:
        """What holds the clock down beside the work itself."""
        return tuple(name for bit, name in HELD_DOWN.items() if self.reasons & bit)

    def others(self, ours: Iterable[int]) -> int:
        """How many processes besides `ours` use it; 0 where the driver does not say which ones do."""
        if self.pids is None or os.getpid() not in self.pids:
            # Inside a container NVML numbers processes as the machine does, or hides them: nothing can be concluded.
            return 0
        return len(set(self.pids) - set(ours) - {os.getpid()})


class Accelerator:
    """The device that torch uses here."""

    def __init__(self) -> None:
        torch.zeros(1, device="cuda")
        self.uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        self._device = ctypes.c_void_p()
        self._nvml: Any = None
        try:
            self._nvml = ctypes.CDLL(str(_beside_driver("libnvidia-ml.so.1")))
            self._ok("nvmlInit_v2")
            self._ok("nvmlDeviceGetHandleByUUID", self.uuid.encode(), ctypes.byref(self._device))
        except OSError:
            # Then nothing can be read; a host can be started all the same.
            self._nvml = None

    def _ok(self, name: str, *arguments: Any) -> None:
        if self._nvml is None:
            raise OSError("NVML is not available")
        code = getattr(self._nvml, name)(*arguments)
        if code != 0:
            raise OSError(f"{name} failed with NVML error {code}")

    def _number(self, name: str, kind: Any, *arguments: Any) -> int | None:
        value = kind()
        try:
            self._ok(name, self._device, *arguments, ctypes.byref(value))
        except (OSError, AttributeError):
            return None
        return int(value.value)

    def minor(self) -> int:
        """The number in the name of its device node."""
        return self._number("nvmlDeviceGetMinorNumber", ctypes.c_uint) or 0

    def shows_a_screen(self) -> bool:
        """Whether a display is driven by it, whose programs need its memory, too."""
        return bool(self._number("nvmlDeviceGetDisplayActive", ctypes.c_uint))

    def nodes(self) -> tuple[str, ...]:
        """The device nodes that a host needs, and no others: neither nvidia-uvm-tools nor another card."""
        nodes = (f"/dev/nvidia{self.minor()}", "/dev/nvidiactl", "/dev/nvidia-uvm")
        return tuple(node for node in nodes if os.path.exists(node))

    def variables(self) -> dict[str, str]:
        """Environment variables by which libraries in a host find the driver without /sys, ldconfig or /etc/passwd."""
        folder = str(_driver_folder())
        return {"LD_LIBRARY_PATH": folder, "TRITON_LIBCUDA_PATH": folder, "CUDA_CACHE_PATH": "/tmp/cuda"}

    def look(self) -> Sight:
        """Clock, temperature, power, what holds the clock down, and who uses it, now."""
        milliwatts = self._number("nvmlDeviceGetPowerUsage", ctypes.c_uint)
        reasons = self._number("nvmlDeviceGetCurrentClocksEventReasons", ctypes.c_ulonglong)
        if reasons is None:
            reasons = self._number("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong)
        return Sight(
            sm_mhz=self._number("nvmlDeviceGetClockInfo", ctypes.c_uint, _SM_CLOCK),
            celsius=self._number("nvmlDeviceGetTemperature", ctypes.c_uint, 0),
            watts=None if milliwatts is None else milliwatts / 1000,
            reasons=reasons or 0,
            pids=self._pids(),
        )

    def _pids(self) -> tuple[int, ...] | None:
        count = ctypes.c_uint(_MAX_PROCESSES)
        running = (_Running * _MAX_PROCESSES)()
        try:
            self._ok("nvmlDeviceGetComputeRunningProcesses_v3", self._device, ctypes.byref(count), running)
        except (OSError, AttributeError):
            return None
        return tuple(int(item.pid) for item in running[: count.value])

    def driver(self) -> str:
        """The driver's version."""
        text = ctypes.create_string_buffer(96)
        try:
            self._ok("nvmlSystemGetDriverVersion", text, ctypes.c_uint(len(text)))
        except OSError:
            return _NOT_SUPPORTED
        return text.value.decode(errors="replace")


def _driver_folder() -> Path:
    """The folder that libcuda was loaded from."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.rpartition(" ")[2]
        if "/libcuda.so" in path:
            return Path(path).parent
    raise OSError("libcuda is not loaded")


def _beside_driver(name: str) -> Path | str:
    """A library of the driver by its path, or by its name where the loader has to find it."""
    beside = _driver_folder() / name
    return beside if beside.exists() else name


def count() -> int:
    """How many accelerators this machine shows, whichever of them this process may use."""
    return len([node for node in Path("/dev").glob("nvidia*") if node.name.removeprefix("nvidia").isdigit()])


@functools.cache
def current() -> Accelerator | None:
    """The accelerator of this process; None without one."""
    return Accelerator() if torch.cuda.is_available() else None
