"""What `import torch` imports for the sake of tracing alone, left until something traces: a quarter of the time it takes.

How operations act on shapes without data (`torch._meta_registrations`, with all decompositions) and `torch.export` are of use to
torch.compile, to fake tensors and to the device "meta" only; a module host starts more often than it meets any of them. Both
become modules that are executed when an attribute of theirs is asked for or one of `NEEDED_BY` is imported, which covers all but
the device "meta": for that somebody must call `complete`.

Imports no torch: it must come before that.
"""

import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

DEFERRED = ("torch._meta_registrations", "torch.export")
NEEDED_BY = (
    "torch._dynamo",
    "torch._inductor",
    "torch._functorch.aot_autograd",
    "torch._decomp",
    "torch._export",
    "torch._prims",
    "torch._refs",
)

_waiting: list[tuple[ModuleType, importlib.abc.Loader]] = []
_lock = threading.RLock()


class _Waiting(ModuleType):
    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # whoever looks through all modules asks for these
            raise AttributeError(name)
        complete()
        return getattr(self, name)


class _Later(importlib.abc.Loader):
    def __init__(self, real: importlib.abc.Loader) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__class__ = _Waiting
        _waiting.append((module, self.real))


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in DEFERRED:
            spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Later(spec.loader)
            return spec
        if _waiting and (fullname in NEEDED_BY or fullname.startswith("torch.export.")):
            complete()
        return None


_finder = _Finder()


def defer() -> None:
    """Has the next `import torch` leave DEFERRED for later. Without effect where torch is imported already."""
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def complete() -> None:
    """Imports what was left for later, if anything was."""
    with _lock:
        if _finder in sys.meta_path:
            sys.meta_path.remove(_finder)
        while _waiting:
            module, loader = _waiting.pop(0)
            module.__class__ = ModuleType
            if module.__spec__ is not None:
                module.__spec__.loader = loader
            loader.exec_module(module)
