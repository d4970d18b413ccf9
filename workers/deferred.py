"""What `import torch` imports for the sake of tracing alone, left until something traces: a quarter of the time it takes.

How operations act on shapes without data (`torch._meta_registrations`, with all decompositions) and `torch.export` are of use to
torch.compile, to fake tensors and to the device "meta" only; a module host starts more often than it meets any of them. Both
become modules that are executed when an attribute of theirs is asked for, before one of `NEEDED_BY` is imported, or by `complete`.
That covers all but the device "meta": whoever may meet it calls `complete`.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

DEFERRED = ("torch._meta_registrations", "torch.export")
ATTRIBUTES = ("_custom_ops", "_decomp", "_prims", "_refs")
"""Modules that are attributes of torch only because what is deferred imports them."""
NEEDED_BY = (
    "torch._dynamo",
    "torch._inductor",
    "torch._functorch.aot_autograd",
    "torch._export",
    *(f"torch.{name}" for name in ATTRIBUTES),
)

_waiting: list[tuple[ModuleType, importlib.abc.Loader]] = []
_lock = threading.RLock()
_completing = False
"""Whether the thread that has the lock is executing what was deferred."""


class _Waiting(ModuleType):
    def __getattr__(self, name: str) -> object:
        if name.startswith("__") and name != "__all__":  # whoever looks through all modules asks for these
            raise AttributeError(name)
        with _lock:
            if _completing:  # by this thread: as any module whose execution has not come so far
                raise AttributeError(f"partially initialized module {self.__name__!r} has no attribute {name!r}")
            complete()
        return getattr(self, name)

    def __dir__(self) -> Iterable[str]:
        complete()
        return super().__dir__()


class _Later(importlib.abc.Loader):
    """Leaves a module to `complete`."""

    def __init__(self, real: importlib.abc.Loader) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__class__ = _Waiting
        _waiting.append((module, self.real))


class _AfterTheRest(importlib.abc.Loader):
    """Completes before it imports a module, which may have been imported by then."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        # Whoever imports takes what stands here in the end.
        del sys.modules[module.__name__]
        complete()
        importlib.import_module(module.__name__)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in DEFERRED:
            spec = PathFinder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Later(spec.loader)
            return spec
        if _waiting and not _completing and (fullname in NEEDED_BY or fullname.startswith("torch.export.")):
            return ModuleSpec(fullname, _AfterTheRest())
        return None


_finder = _Finder()


def import_torch() -> None:
    """Imports torch without DEFERRED. Without effect where torch is imported already."""
    if "torch" in sys.modules:
        return
    sys.meta_path.insert(0, _finder)
    import torch

    names = getattr(torch, "_lazy_modules", None)
    if isinstance(names, set):
        names.update(ATTRIBUTES)
    else:
        complete()
    # What makes torch.Generator usable is set by the prims, too; without it each one raises.
    if hasattr(torch._C, "_set_generator_metaclass"):
        from torch._opaque_base import OpaqueBaseMeta

        torch._C._set_generator_metaclass(OpaqueBaseMeta)


def complete() -> None:
    """Imports what was left for later, if anything was."""
    global _completing
    with _lock:
        if _completing or not _waiting:
            return
        _completing = True
        try:
            while _waiting:
                module, loader = _waiting[0]
                if module.__spec__ is not None:
                    module.__spec__.loader = loader
                loader.exec_module(module)
                module.__class__ = ModuleType
                del _waiting[0]
            sys.meta_path.remove(_finder)
        finally:
            _completing = False
