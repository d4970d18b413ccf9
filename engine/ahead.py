"""Compilation ahead of time, for the CPU: AOTInductor's functions are entered in a tenth of what torch.compile's take.

torch.compile checks its guards and passes several wrappers in Python with each call, 50 to 100 µs for each part of a layer: for one token
of a small model that is more than the work. Here the caller says what may differ from call to call, and all else is compiled in.
"""

import dataclasses
import logging
import secrets
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from copy import copy
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._inductor.runtime.cache_dir_utils import cache_dir

from engine.processor import processor

log = logging.getLogger(__name__)
Run = Callable[[list[Tensor]], list[Tensor]]


class Ready(NamedTuple):
    """What serves calls with certain arguments: a compiled function, and the tensors within the arguments that never differ.

    run: None where it could not be compiled. fixed: the arguments that are no tensors, held so that nothing else gets their identity.
    """

    run: Run | None
    fixed: tuple[Any, ...]
    weights: list[Tensor]


class Ahead:
    """`function` compiled for each shape and structure of its arguments; as it is written where that fails.

    Arguments are tensors, and objects that stay the same from call to call: layers and matrices, whose weights become arguments of the
    compiled function, so that layers alike share one; and whatever else, which is compiled in. An object must keep the tensors that it had
    when it was first met; what is written into those is seen.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._ready: dict[Hashable, Ready] = {}
        self._compiled: dict[Hashable, Run | None] = {}

    def __call__(self, *arguments: Any) -> Any:
        key: list[Any] = [torch.get_num_threads()]
        key += [(each.shape, each.dtype) if isinstance(each, Tensor) else id(each) for each in arguments]
        ready = self._ready.get(tuple(key))
        if ready is None:
            ready = self._ready[tuple(key)] = self._prepare(arguments)
        if ready.run is None:
            return self.function(*arguments)
        given = [each.contiguous() for each in arguments if isinstance(each, Tensor)]
        results = ready.run(given + ready.weights)
        return results[0] if len(results) == 1 else results

    def _prepare(self, arguments: Sequence[Any]) -> Ready:
        fixed = tuple(each for each in arguments if not isinstance(each, Tensor))
        parts = [taken_apart(each) for each in fixed]
        weights = [tensor for part in parts for tensor in part.tensors]
        with torch.inference_mode(False):
            given = [
                torch.zeros_like(each, memory_format=torch.contiguous_format)
                for each in arguments
                if isinstance(each, Tensor)
            ]
        structure = (
            tuple(kind_of(each) for each in given),
            tuple((part.structure, tuple(kind_of(tensor) for tensor in part.tensors)) for part in parts),
            torch.get_num_threads(),
        )
        if structure not in self._compiled:
            kept = [(each, shallow(vars(each))) for part in parts for each in part.opaque]
            try:
                self._compiled[structure] = self._compile(arguments, parts, given, weights)
            except Exception as error:  # what a slot does need not be exportable, and compilers fail in many ways
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                log.warning("%s is not compiled ahead of time: %s", self.function.__name__, reason)
                self._compiled[structure] = None
            finally:
                # Exporting runs what slots do with tensors that hold nothing; those must not stay with them.
                for each, state in kept:
                    vars(each).clear()
                    vars(each).update(state)
        return Ready(self._compiled[structure], fixed, weights)

    def _compile(
        self, arguments: Sequence[Any], parts: Sequence["Apart"], given: list[Tensor], weights: list[Tensor]
    ) -> Run:
        function = self.function

        class Module(torch.nn.Module):
            """The function with nothing but tensors as its arguments."""

            def forward(self, *tensors: Tensor) -> Any:
                there, held = iter(tensors[: len(given)]), iter(tensors[len(given) :])
                put = iter([part.together(held) for part in parts])
                return function(*(next(there if isinstance(each, Tensor) else put) for each in arguments))

        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's own, about itself
            samples = (*given, *weights)
            program = torch.export.export(Module(), samples)
            run: Run = torch._inductor.aoti_load_package(packaged(program, samples)).loader.boxed_run
        return run


def packaged(program: torch.export.ExportedProgram, samples: Sequence[Tensor]) -> str:
    """Path of the compiled program, which lies in the inductor's cache if an earlier process has made it."""
    constants = {name: each.tolist() if isinstance(each, Tensor) else each for name, each in program.constants.items()}
    machine = (torch.__version__, torch.get_num_threads(), processor("flags", "Features"))
    text = repr((machine, [kind_of(sample) for sample in samples], str(program), constants))
    path = Path(cache_dir()) / "ahead" / f"{sha256(text.encode()).hexdigest()}.pt2"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_name(f"{secrets.token_hex(8)}.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=str(made))
        made.replace(path)
    return str(path)


class Apart(NamedTuple):
    """An object's tensors, its structure without them, and what makes the object again with others in their places, taken in order.

    opaque: objects within it that are left whole, and may keep something of their own.
    """

    structure: Hashable
    tensors: list[Tensor]
    together: Callable[[Iterator[Tensor]], Any]
    opaque: list[Any]


def taken_apart(item: Any) -> Apart:
    """Dataclasses, named tuples and dicts by what they hold; fields that are not compared, such as a matrix's name, are no part of the structure."""
    if isinstance(item, Tensor):
        return Apart("tensor", [item], next, [])
    if item is None or isinstance(item, str | int | float):
        return Apart((type(item), item), [], lambda _: item, [])
    compared = None
    if isinstance(item, dict):
        held = item

        def make(values: dict[Any, Any]) -> Any:
            return values
    elif isinstance(item, tuple) and hasattr(item, "_asdict"):
        held, make = item._asdict(), lambda values: type(item)(**values)
    elif dataclasses.is_dataclass(item) and not isinstance(item, type):
        fields = dataclasses.fields(item)
        held = {field.name: getattr(item, field.name) for field in fields}
        compared = {field.name for field in fields if field.compare}

        def make(values: dict[Any, Any]) -> Any:
            return dataclasses.replace(item, **values)
    else:
        return Apart(
            id(item), [], lambda _: item, [item] if hasattr(item, "__dict__") and not isinstance(item, type) else []
        )
    parts = {name: taken_apart(each) for name, each in held.items()}
    return Apart(
        (type(item), tuple((name, part.structure) for name, part in parts.items() if not compared or name in compared)),
        [tensor for part in parts.values() for tensor in part.tensors],
        lambda tensors: make({name: part.together(tensors) for name, part in parts.items()}),
        [each for part in parts.values() for each in part.opaque],
    )


def shallow(state: dict[str, Any]) -> dict[str, Any]:
    """A copy of an object's attributes, and of the containers among them."""
    return {name: copy(each) if isinstance(each, dict | list | set) else each for name, each in state.items()}


def kind_of(tensor: Tensor) -> Hashable:
    """What a compiled function relies on in a tensor."""
    return tensor.dtype, tensor.device, tensor.shape, tensor.stride()
