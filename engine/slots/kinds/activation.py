"""How activation is judged."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from engine.reference.activation import swiglu
from engine.slots.caps import Caps, dtypes_for, why_not
from engine.slots.compare import compare_output, differing_rows, same_bits
from engine.slots.drawing import draw_tensor, permutation
from engine.slots.header import Header
from engine.slots.kind import (
    Call,
    Case,
    Driver,
    Environment,
    Finding,
    HeldSet,
    Property,
    Runner,
    Scalar,
    SlotKind,
    Suite,
    TensorSpec,
    Work,
)
from engine.slots.kinds.attention import lacking
from engine.slots.kinds.pointwise import pointwise_cases, vary_pointwise
from engine.slots.places import APART, Earlier, both_ways, put, takes_out
from engine.slots.source import Source
from engine.slots.steps import follows, must_hold_all, signed_by_many, with_all_taken
from engine.workloads.pointwise import ACTIVATION_CPU, ACTIVATION_CUDA, ACTIVATION_UNIT


class ActivationKind(SlotKind):
    """Cases are one or several SwiGLU in a row."""

    name = "activation"
    title = "SwiGLU"
    default = "plain"
    parts_of_a_pair = 3

    # -- the judge's side -------------------------------------------------------------------------------------------

    def why_not(self, header: Header, environment: Environment) -> list[str]:
        """Reasons, as sentences, for which the implementation cannot be judged here."""
        return why_not(header, environment)

    def cases(self, suite: Suite, header: Header, environment: Environment) -> Sequence[Case]:
        """The workloads of the suite and device."""
        performance = ACTIVATION_CUDA if environment.device == "cuda" else ACTIVATION_CPU
        return pointwise_cases(suite, header, environment, ACTIVATION_UNIT if suite == "unit" else performance)

    def vary(self, case: Case, source: Source) -> Case:
        """Other tokens and distributions."""
        return vary_pointwise(case, source)

    def held(self, case: Case, source: Source) -> HeldSet:
        """Nothing."""
        return {}

    def draw(self, case: Case, held: HeldSet, source: Source) -> Call:
        """gate_up: [repeat * T, 2F]."""
        size = (case["tokens"] * case["repeat"], 2 * case["width"])
        scale = source.choice((0.3, 1.0, 6.0))
        dtype = TensorSpec((), case.dtype).torch_dtype
        call = swiglu_call(draw_tensor(source, size, dtype, case["device"], case["values"], scale), case["repeat"])
        call.params["follows"] = follows(case, "repeat")
        call.recorded = case["recorded"]
        return call

    def ways(self, call: Call) -> list[Call]:
        """With a place for the result, and as the engine calls it."""
        return both_ways(call)

    def followed(self, call: Call, outputs: Mapping[str, Tensor]) -> Call:
        """gate_up of each: of the later ones, `signed_by_many` the y before."""
        return with_all_taken(call, "gate_up", signed_by_many, outputs["y"], "repeat")

    def expected(self, case: Case, held: HeldSet, call: Call) -> dict[str, Tensor]:
        """The definition in float32."""
        must_hold_all(call.params)
        return {"y": swiglu(call.inputs["gate_up"])}

    def plain(self, case: Case, held: HeldSet, call: Call) -> dict[str, Tensor]:
        """silu in the case's dtype, then the product."""
        gate, up = call.inputs["gate_up"].chunk(2, dim=-1)
        return {"y": functional.silu(gate) * up}

    def compare(
        self,
        case: Case,
        header: Header,
        got: Mapping[str, Tensor],
        expected: Mapping[str, Tensor],
        plain: Mapping[str, Tensor] | None,
    ) -> Finding | None:
        """y by class."""
        return compare_output(
            "y",
            got["y"],
            expected["y"],
            None if plain is None else plain["y"],
            case.dtype,
            header.quality_class,
            "token",
        )

    def properties(self, header: Header, environment: Environment) -> Sequence[Property]:
        """Row independence, extreme gates, determinism."""
        dtype = dtypes_for(header, environment)[0]
        torch_dtype = TensorSpec((), dtype).torch_dtype

        def drawn(source: Source) -> Tensor:
            return draw_tensor(source, (11, 2 * 67), torch_dtype, environment.device, "long-tailed")

        def rows(runner: Runner, source: Source) -> Finding | None:
            values = drawn(source)
            order = permutation(source, len(values))
            first, second = runner.run(swiglu_call(values))["y"], runner.run(swiglu_call(values[order]))["y"]
            differs = differing_rows(first[order], second, dtype)
            if not bool(differs.any()):
                return None
            row = int(differs.to(torch.uint8).argmax())
            return Finding(
                f"Rows are not independent: with the rows in another order, the result of row {order[row]} is another."
            )

        def extremes(runner: Runner, source: Source) -> Finding | None:
            values = drawn(source)
            width = values.shape[1] // 2
            values[0, :width] = -200.0
            values[1, :width] = 200.0
            values[2, :width] = 0.0
            got = runner.run(swiglu_call(values))["y"].float()
            wanted = swiglu(values)
            for row, gate in ((0, -200), (1, 200), (2, 0)):
                off = (got[row] - wanted[row]).abs() > 0.01 * wanted[row].abs() + 1e-6
                # A NaN is neither above nor below the bound.
                off |= torch.isnan(got[row])
                if bool(off.any()):
                    at = int(off.to(torch.uint8).argmax())
                    hint = "" if math.isfinite(got[row, at]) else " Does the exponential overflow?"
                    return Finding(
                        f"With gates of {gate}, y[{row}, {at}] is {float(got[row, at]):.6g}; expected "
                        f"{float(wanted[row, at]):.6g}.{hint}",
                        "y",
                        (row, at),
                        float(wanted[row, at]),
                        float(got[row, at]),
                    )
            return None

        def again(runner: Runner, source: Source) -> Finding | None:
            call = swiglu_call(drawn(source))
            first, second = runner.run(call)["y"], runner.run(call)["y"]
            return same_bits("y", second, first, "The same call gave other bits the second time.")

        checks = [
            Property("row independence", "A row's result depends on no other row.", rows),
            Property("extreme gates", "Very large and very small gates neither overflow nor give NaN.", extremes),
        ]
        if Caps.of(header).deterministic:
            checks.append(Property("determinism", "The same call gives the same bits.", again))
        return checks

    def work(self, case: Case, held: HeldSet, call: Call) -> Work:
        """Reading the input and writing the output once."""
        values = call.inputs["gate_up"]
        return Work(values.numel() * values.element_size() * 3 // 2, 2 * values.numel())

    def proxy(self, runner: Runner, header: Header) -> Any:
        """A class to be used in place of the implementation's, whose instances forward to `runner`."""
        channel = runner

        class Remote(RemoteActivation):
            runner = channel

        return Remote

    # -- the host's side --------------------------------------------------------------------------------------------

    def why_malformed(self, implementation: type[Any]) -> list[str]:
        """What the class lacks of the contract."""
        return lacking(implementation, ("forward",), "activation")

    def driver(self, implementation: type[Any]) -> Driver:
        """Makes one instance."""
        return ActivationDriver(implementation())


def swiglu_call(gate_up: Tensor, repeat: int = 1) -> Call:
    """The call for gate_up [repeat * T, 2F]."""
    tokens, width = gate_up.shape
    spec = TensorSpec((tokens, width // 2), TensorSpec.of(gate_up).dtype)
    return Call("swiglu", {"repeat": repeat}, {"gate_up": gate_up}, {"y": spec})


class ActivationDriver:
    """Runs in the host.

    into: where a host wants outputs, by name.
    """

    def __init__(self, activation: Any) -> None:
        self.activation = activation
        self.takes_out = takes_out(activation.forward)
        self.into: Mapping[str, Tensor] = {}

    def prepare(self, operation: str, params: Mapping[str, Scalar], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """There is nothing to prepare."""
        raise ValueError(f"activation has no preparation {operation!r}.")

    def run(
        self, operation: str, params: Mapping[str, Scalar], inputs: Mapping[str, Tensor], held: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """swiglu, `repeat` times on consecutive rows."""
        if operation != "swiglu":
            raise ValueError(f"activation has no operation {operation!r}.")
        repeat = int(params["repeat"] or 1)
        gate_up = inputs["gate_up"]
        wanted = self.into.get("y")
        if wanted is None:
            wanted = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
        places = wanted.chunk(repeat)
        earlier: list[Earlier] = []
        for number, part in enumerate(gate_up.chunk(repeat)):
            taken = signed_by_many(part, places[number - 1]) if number and params.get("follows") else part
            room = {"out": places[number]} if self.takes_out and not params.get(APART) else {}
            put("'y'", self.activation.forward(taken, **room), places[number], earlier)
        return {"y": wanted}


class RemoteActivation:
    """An `Activation` in the judge's engine."""

    runner: ClassVar[Runner]

    def forward(self, gate_up: Tensor) -> Tensor:
        """Computes in the host. Raises CallFailed."""
        return self.runner.run(swiglu_call(gate_up.contiguous()))["y"]


ACTIVATION = ActivationKind()
