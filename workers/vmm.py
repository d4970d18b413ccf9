"""Device memory that two processes share: CUDA's virtual memory management, by ctypes.

One process makes physical memory and exports it as a file descriptor, which travels over a socket; the other imports it.
CUDA's older IPC handles fail inside a sandbox; this way needs nothing but the descriptor. The calls and structures are those
of cuda.h (CUDA driver API, "Virtual Memory Management"), unchanged since CUDA 11.3.
"""

import contextlib
import ctypes
import functools
import os
from typing import Any

import torch
from torch import Tensor

_PINNED = 1  # CU_MEM_ALLOCATION_TYPE_PINNED: memory on the device that is not migrated
_FILE_DESCRIPTOR = 1  # CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
_DEVICE = 1  # CU_MEM_LOCATION_TYPE_DEVICE
_READ_WRITE = 3  # CU_MEM_ACCESS_FLAGS_PROT_READWRITE


OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


class DeviceMemoryError(Exception):
    """The driver refused; `str(error)` names the call and the driver's own name for the error, whose number is `code`."""

    def __init__(self, sentence: str, code: int = 0) -> None:
        super().__init__(sentence)
        self.code = code


class _Location(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_int)]


class _Flags(ctypes.Structure):
    _fields_ = [
        ("compression", ctypes.c_ubyte),
        ("rdma", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    ]


class _Properties(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", _Location),
        ("win32", ctypes.c_void_p),
        ("flags", _Flags),
    ]


class _Access(ctypes.Structure):
    _fields_ = [("location", _Location), ("flags", ctypes.c_int)]


@functools.cache
def _driver() -> Any:
    """libcuda as torch has loaded it, with its primary context made. Raises RuntimeError without a device."""
    torch.zeros(1, device="cuda")
    return ctypes.CDLL("libcuda.so.1")


def _call(name: str, *arguments: Any) -> None:
    code = getattr(_driver(), name)(*arguments)
    if code != 0:
        text = ctypes.c_char_p()
        _driver().cuGetErrorName(code, ctypes.byref(text))
        raise DeviceMemoryError(f"{name} failed with {(text.value or b'?').decode()} ({code}).", code)


def _properties() -> _Properties:
    properties = _Properties(type=_PINNED, handle_types=_FILE_DESCRIPTOR)
    properties.location = _Location(_DEVICE, torch.cuda.current_device())
    return properties


@functools.cache
def granularity() -> int:
    """The bytes of which every size is a multiple."""
    found = ctypes.c_size_t()
    _call("cuMemGetAllocationGranularity", ctypes.byref(found), ctypes.byref(_properties()), 0)
    return found.value


_held = 0


def held_bytes() -> int:
    """Bytes of the device's memory that this process has mapped or reserved."""
    return _held


class Mapping:
    """Physical memory of the current device in this process's address space; unmapped when nothing refers to it any more."""

    def __init__(self, handle: ctypes.c_ulonglong, nbytes: int) -> None:
        """Maps the memory behind `handle`, which is released: the mapping keeps the memory alive."""
        self.nbytes = nbytes
        self._address = ctypes.c_ulonglong()
        self._mapped = False
        size = ctypes.c_size_t(nbytes)
        try:
            _call(
                "cuMemAddressReserve",
                ctypes.byref(self._address),
                size,
                ctypes.c_size_t(0),
                ctypes.c_ulonglong(0),
                ctypes.c_ulonglong(0),
            )
            _call("cuMemMap", self._address, size, ctypes.c_size_t(0), handle, ctypes.c_ulonglong(0))
            self._mapped = True
            _count(nbytes)
            access = _Access(_Location(_DEVICE, torch.cuda.current_device()), _READ_WRITE)
            _call("cuMemSetAccess", self._address, size, ctypes.byref(access), ctypes.c_size_t(1))
        except BaseException:
            self.close()
            raise
        finally:
            _call("cuMemRelease", handle)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": (self.nbytes,),
            "strides": None,
            "typestr": "|u1",
            "data": (self._address.value, False),
            "version": 3,
        }

    def bytes(self) -> Tensor:
        """uint8[nbytes] over the memory; the tensor and its views keep the mapping alive."""
        # Taken in inference mode, it is written to outside of it, too, and may need autograd.
        with torch.inference_mode(False):
            whole = torch.as_tensor(self, device="cuda")
        if whole.data_ptr() != self._address.value:
            raise DeviceMemoryError("torch copied the shared memory instead of using it in place.")
        return whole

    def close(self) -> None:
        """Unmaps, once the device has finished what may still use the memory."""
        if not self._address.value:
            return
        size = ctypes.c_size_t(self.nbytes)
        torch.cuda.synchronize()
        if self._mapped:
            _call("cuMemUnmap", self._address, size)
            _count(-self.nbytes)
        _call("cuMemAddressFree", self._address, size)
        self._address.value = 0

    def __del__(self) -> None:
        # At the end of the process the driver may have gone first, and the memory with it.
        with contextlib.suppress(Exception):
            self.close()


def _count(nbytes: int) -> None:
    global _held
    _held += nbytes


def _create(nbytes: int) -> ctypes.c_ulonglong:
    """The handle of fresh physical memory. Raises DeviceMemoryError."""
    handle = ctypes.c_ulonglong()
    size, properties = ctypes.c_size_t(nbytes), _properties()
    _call("cuMemCreate", ctypes.byref(handle), size, ctypes.byref(properties), ctypes.c_ulonglong(0))
    return handle


class Reservation:
    """Memory of the current device that nobody uses, and nobody else has, until it is closed."""

    def __init__(self) -> None:
        self._parts: list[tuple[ctypes.c_ulonglong, int]] = []

    @property
    def nbytes(self) -> int:
        return sum(size for _, size in self._parts)

    def take(self, nbytes: int) -> int:
        """Takes `nbytes` more, rounded down to whole pages, or what there is of it, in parts where there is no such piece. Returns how many it took.

        Raises DeviceMemoryError where the driver refuses for another reason than that there is no more.
        """
        step = granularity()
        left = piece = nbytes // step
        while left and piece:
            piece = min(piece, left)
            try:
                part = _create(piece * step)
            except DeviceMemoryError as error:
                if error.code != OUT_OF_MEMORY:
                    raise
                piece //= 2
                continue
            self._parts.append((part, piece * step))
            _count(piece * step)
            left -= piece
        return (nbytes // step - left) * step

    def close(self) -> None:
        """Gives it back."""
        while self._parts:
            handle, size = self._parts[-1]
            _call("cuMemRelease", handle)
            self._parts.pop()
            _count(-size)

    def __del__(self) -> None:
        # At the end of the process the driver may have gone first.
        with contextlib.suppress(Exception):
            self.close()


def make(nbytes: int) -> tuple[Mapping, int]:
    """Fresh memory of at least `nbytes`, mapped here, and its file descriptor. Raises DeviceMemoryError."""
    step = granularity()
    size = -(-max(nbytes, 1) // step) * step
    handle = _create(size)
    fd = ctypes.c_int(-1)
    try:
        _call("cuMemExportToShareableHandle", ctypes.byref(fd), handle, _FILE_DESCRIPTOR, ctypes.c_ulonglong(0))
    except DeviceMemoryError:
        _call("cuMemRelease", handle)
        raise
    try:
        return Mapping(handle, size), fd.value
    except BaseException:
        os.close(fd.value)
        raise


def take(fd: int, nbytes: int) -> Mapping:
    """The memory of `nbytes` behind a descriptor that another process exported; the descriptor stays the caller's.

    Raises DeviceMemoryError.
    """
    handle = ctypes.c_ulonglong()
    _call("cuMemImportFromShareableHandle", ctypes.byref(handle), ctypes.c_void_p(fd), _FILE_DESCRIPTOR)
    return Mapping(handle, nbytes)
