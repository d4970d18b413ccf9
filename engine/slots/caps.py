"""What an implementation says that it can do, beyond device and dtype: the further keys of its header."""

import importlib.util
import re
import sys
from dataclasses import dataclass
from typing import Any

from engine.slots.header import Header
from engine.slots.kind import Environment

PHASES = ("prefill", "decode", "mixed")
KEYS: dict[str, tuple[str, ...]] = {
    "attention": ("head_dims", "phases", "window", "kv", "max_group", "evict"),
    "quantization": ("embedding", "multiple_of"),
    "normalization": (),
    "activation": (),
    "adapter": ("machines", "operators"),
}
# Of a dotted name Python would import what is before the last dot, which may be anything that lies on the path: a slot file, say.
PACKAGE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}", re.ASCII)
COMMON = ("min_sm", "deterministic", "cuda_graph", "batch_invariant", "trainable", "needs")


@dataclass(frozen=True)
class Caps:
    """The limits of an implementation. Every key is optional; its default claims the most that is usual.

    min_sm: least compute capability times ten (90 for Hopper); 0 for any.
    deterministic: the same call gives the same bits. batch_invariant: so does the same sequence in any batch.
    cuda_graph (attention): decode steps, `plan` included, do not wait for the device, so that they can be recorded; quantization, normalization and activation are recorded without asking. trainable: supports autograd.
    needs: Python packages beyond torch.
    head_dims: head sizes (attention); empty for any. phases: kinds of step. window: supports sliding windows.
    kv: "standard" or "own" layout of the cache. max_group: largest ratio of query to key/value heads; 0 for any.
    evict: offers `evict`.
    embedding: offers `embedding` (quantization). multiple_of: the input size must be a multiple of it.
    machines: values of platform.machine() that an adapter is for; empty for any. operators: names that it binds.
    """

    min_sm: int = 0
    deterministic: bool = False
    cuda_graph: bool = False
    batch_invariant: bool = False
    trainable: bool = False
    needs: tuple[str, ...] = ()
    head_dims: tuple[int, ...] = ()
    phases: tuple[str, ...] = PHASES
    window: bool = True
    kv: str = "standard"
    max_group: int = 0
    evict: bool = False
    embedding: bool = False
    multiple_of: int = 1
    machines: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()

    @staticmethod
    def of(header: Header) -> "Caps":
        """The limits that a header declares. Raises ValueError with a sentence for its author."""
        allowed = KEYS[header.kind] + COMMON
        values: dict[str, Any] = {}
        for key, value in header.limits.items():
            if key not in allowed:
                raise ValueError(
                    f"The header's {key!r} means nothing for {header.kind}; the optional keys are {', '.join(allowed)}."
                )
            default = getattr(Caps, key)
            if isinstance(default, tuple):
                item = int if key == "head_dims" else str
                if not isinstance(value, list) or any(type(entry) is not item for entry in value):
                    raise ValueError(f"The header's {key!r} must be a list of {item.__name__}, not {value!r}.")
                value = tuple(value)
            elif type(value) is not type(default):
                raise ValueError(f"The header's {key!r} must be a {type(default).__name__}, not {value!r}.")
            values[key] = value
        caps = Caps(**values)
        for package in caps.needs:
            if not PACKAGE.fullmatch(package):
                raise ValueError(
                    f"The header's 'needs' must be names of packages, without dots; {package[:100]!r} is not one."
                )
        if any(phase not in PHASES for phase in caps.phases):
            raise ValueError(f"The header's 'phases' may hold {', '.join(PHASES)}; it holds {list(caps.phases)}.")
        if caps.kv not in ("standard", "own"):
            raise ValueError(f"The header's 'kv' is {caps.kv!r}; it must be 'standard' or 'own'.")
        if caps.multiple_of < 1:
            raise ValueError(f"The header's 'multiple_of' must be at least 1, not {caps.multiple_of}.")
        return caps


def why_not(header: Header, environment: Environment) -> list[str]:
    """Reasons, as sentences, for which an implementation with this header cannot run in `environment`."""
    try:
        caps = Caps.of(header)
    except ValueError as error:
        return [str(error)]
    reasons = []
    if environment.device not in header.devices:
        reasons.append(
            f"It is for {' and '.join(header.devices)}; the machine class {environment.machine_class} is {environment.device}."
        )
    if not set(header.dtypes) & set(environment.dtypes):
        reasons.append(
            f"It is for {', '.join(header.dtypes)}; {environment.machine_class} judges {', '.join(environment.dtypes)}."
        )
    if environment.device == "cuda" and environment.sm < caps.min_sm:
        reasons.append(f"It needs compute capability {caps.min_sm / 10}; the device has {environment.sm / 10}.")
    for package in caps.needs:
        if not _installed(package):
            reasons.append(f"It needs the package {package!r}, which is not installed here.")
    return reasons


def _installed(package: str) -> bool:
    """Whether a package is there, without importing anything."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # such as `__main__`, which is there and has no origin
        return package in sys.modules


def dtypes_for(header: Header, environment: Environment) -> list[str]:
    """The dtypes that both sides know, in the environment's order."""
    return [dtype for dtype in environment.dtypes if dtype in header.dtypes]
