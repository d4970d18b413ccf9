"""A Runner in the same process, for tests of the kinds and for trying out one's own file. It confines nothing."""

from typing import Any

import torch
from torch import Tensor

from engine.slots.header import Header
from engine.slots.kind import Call, CallFailed, Case, Finding, Held, HeldSet, Preparation, SlotKind, bits, rewritten
from engine.slots.source import Source


class InProcess:
    """Runs an implementation of `kind` right here, with the checks that a module host and its judge make."""

    def __init__(self, kind: SlotKind, implementation: type[Any]) -> None:
        lacks = kind.why_malformed(implementation)
        if lacks:
            raise CallFailed(" ".join(lacks))
        self.driver = kind.driver(implementation)
        self.tensors: dict[str, Tensor] = {}
        self.read_only: dict[str, Tensor] = {}

    def hold(self, held: HeldSet) -> dict[str, Tensor]:
        """Keeps copies under their names; returns the tensors that the implementation sees."""
        views = {}
        for name, entry in held.items():
            if entry.access == "private":
                views[name] = entry.tensor
                continue
            views[name] = self.tensors[name] = entry.tensor.clone()
            self.read_only.pop(name, None)
            if entry.access == "read":
                self.read_only[name] = entry.tensor.clone()
        return views

    def prepare(self, preparation: Preparation) -> dict[str, Tensor]:
        """The results, copied."""
        try:
            results = self.driver.prepare(preparation.operation, preparation.params, preparation.inputs)
        except Exception as error:
            raise CallFailed(f"{type(error).__name__}: {error}") from error
        return {name: result.detach().contiguous().clone() for name, result in results.items()}

    def run(self, call: Call) -> dict[str, Tensor]:
        """The outputs, copied, with `state:NAME` for what the call asks to check."""
        with rewritten(self.tensors, call.rewrites):
            outputs = self._run(call)
        for name, value in self.read_only.items():
            self._unchanged(name, self.tensors[name], value)
        return outputs

    def _run(self, call: Call) -> dict[str, Tensor]:
        before = {name: value.clone() for name, value in call.inputs.items()}
        try:
            with torch.inference_mode():
                results = self.driver.run(call.operation, call.params, call.inputs, self.tensors)
        except Exception as error:
            raise CallFailed(f"{type(error).__name__}: {error}") from error
        outputs = {}
        for name, spec in call.outputs.items():
            if name not in results:
                raise CallFailed(f"The implementation returned no {name!r}.")
            value = results[name]
            if tuple(value.shape) != spec.shape or value.dtype != spec.torch_dtype:
                raise CallFailed(
                    f"{name!r} is {list(value.shape)} of {value.dtype}; expected {list(spec.shape)} of {spec.torch_dtype}."
                )
            outputs[name] = value.clone()
        for name, value in before.items():
            self._unchanged(name, call.inputs[name], value)
        for name in call.check_state:
            outputs[f"state:{name}"] = self.tensors[name].clone()
        return outputs

    @staticmethod
    def _unchanged(name: str, now: Tensor, before: Tensor) -> None:
        if not torch.equal(bits(now), bits(before)):
            raise CallFailed(f"The implementation wrote to its input {name!r}.")


def judge_case(
    kind: SlotKind,
    header: Header,
    case: Case,
    implementation: type[Any],
    source: Source,
    calls: int = 2,
    timed: bool = False,
) -> Finding | None:
    """What the unit suite makes of one case: prepare, settle, and compare `calls` calls. Raises CallFailed.

    `timed` compares as timed calls are compared, without the plain path.
    """
    case = kind.vary(case, source.child("vary"))
    held = kind.held(case, source.child("held"))
    other = kind.other(case, held, source.child("held", "other"))
    settled = []
    for one in (held, other):
        preparation = None if one is None else kind.preparation(case, one)
        if one is None or preparation is None:
            continue
        results = InProcess(kind, implementation).prepare(preparation)
        one.update({name: Held(result, preparation.access) for name, result in results.items()})
        fresh = InProcess(kind, implementation)
        fresh.hold(one)
        more, finding = kind.settle(case, header, one, fresh)
        if finding is not None:
            return finding
        one.update(more)
        settled.append(fresh)
    if other is not None:
        held.update(kind.parts(case, held, other, settled[-1]))
    runner = InProcess(kind, implementation)
    runner.hold(held)
    for number in range(calls):
        call = kind.draw(case, held, source.child("call", number))
        for way in kind.ways(call):
            finding = kind.judged(case, header, held, runner, way, timed)
            if finding is not None:
                return finding
    return None
