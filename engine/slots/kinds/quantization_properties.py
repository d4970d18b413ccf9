"""What must hold of every quantization beside closeness to the reference."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.slots.caps import Caps, dtypes_for
from engine.slots.compare import COARSE, compare_output, same_bits
from engine.slots.drawing import draw_tensor
from engine.slots.header import Header
from engine.slots.kind import (
    Call,
    CallFailed,
    Environment,
    Finding,
    Held,
    Preparation,
    Property,
    Runner,
    TensorSpec,
)
from engine.slots.source import Source
from engine.workloads.linear import LinearWorkload

if TYPE_CHECKING:
    from engine.slots.kinds.quantization import QuantizationKind

OUTPUTS, INPUTS = 96, 256


def quantization_properties(kind: "QuantizationKind", header: Header, environment: Environment) -> Sequence[Property]:
    """The properties that an implementation with this header must have."""
    from engine.slots.kinds.quantization import compare_stored, linear_call

    caps = Caps.of(header)
    dtype = dtypes_for(header, environment)[0]
    torch_dtype = TensorSpec((), dtype).torch_dtype
    inputs = -(-INPUTS // caps.multiple_of) * caps.multiple_of
    case = kind.case(LinearWorkload("property", 9, OUTPUTS, inputs), dtype, environment.device, "unit")
    # One row alone may take another kernel than many, with the rounding of the class.
    loosest = COARSE[header.quality_class].element if header.quality_class in COARSE else 0.0

    def pack(runner: Runner, weight: Tensor) -> None:
        results = runner.prepare(Preparation("pack", {}, {"weight": weight[None].contiguous()}))
        runner.hold({name: Held(value, "read") for name, value in results.items()})

    def weight_of(source: Source) -> Tensor:
        return draw_tensor(
            source, (OUTPUTS, inputs), torch_dtype, environment.device, "long-tailed", scale=inputs**-0.5
        )

    def x_of(source: Source, tokens: int = 9) -> Tensor:
        return draw_tensor(source, (tokens, inputs), torch_dtype, environment.device, "long-tailed")

    def multiply(runner: Runner, x: Tensor) -> Tensor:
        return runner.run(linear_call(case, x))["y"]

    def stored(runner: Runner, shape: tuple[int, int] = (OUTPUTS, inputs)) -> Tensor:
        return runner.run(Call("dequant", {"of": "0/"}, {}, {"weight": TensorSpec(shape, "float32")}))["weight"]

    def tokens(runner: Runner, source: Source) -> Finding | None:
        pack(runner, weight_of(source))
        x = x_of(source)
        whole = multiply(runner, x).float()
        for row in range(len(x)):
            alone = multiply(runner, x[row : row + 1]).float()[0]
            magnitude = float(whole[row].abs().max())
            allowed = max(loosest, 0.02 if dtype != "float32" else 1e-4) * max(magnitude, 1e-6)
            if not float((alone - whole[row]).abs().max()) <= allowed:
                at = int((alone - whole[row]).abs().argmax())
                return Finding(
                    f"A token's result depends on its company: token {row} alone gives {float(alone[at]):.6g} at output "
                    f"{at}, and {float(whole[row, at]):.6g} in a batch of {len(x)}.",
                    "y",
                    (row, at),
                    float(alone[at]),
                    float(whole[row, at]),
                )
        return None

    def homogeneous(runner: Runner, source: Source) -> Finding | None:
        pack(runner, weight_of(source))
        x = x_of(source)
        once, eightfold = multiply(runner, x).float(), multiply(runner, x * 8).float()
        finding = compare_output("y", eightfold, once * 8, None, dtype, header.quality_class, "token")
        if finding is None:
            return None
        return Finding(
            f"Eight times the input does not give eight times the output. {finding.sentence}",
            finding.output,
            finding.index,
            finding.expected,
            finding.got,
        )

    def small_weights(runner: Runner, source: Source) -> Finding | None:
        weight = weight_of(source)
        for factor in (2.0**-8, 2.0**6):
            scaled = (weight.float() * factor).to(torch_dtype)
            pack(runner, scaled)
            finding = compare_stored(stored(runner), scaled, header.quality_class)
            if finding is not None:
                return Finding(
                    f"With weights {factor:.4g} times as large: {finding.sentence}",
                    finding.output,
                    finding.index,
                    finding.expected,
                    finding.got,
                )
        return None

    def zero_rows(runner: Runner, source: Source) -> Finding | None:
        weight = weight_of(source)
        row = source.integer(0, OUTPUTS - 1)
        weight[row] = 0
        pack(runner, weight)
        kept = stored(runner)[row]
        if not bool((kept == 0).all()):
            at = int((kept != 0).to(torch.uint8).argmax())
            return Finding(
                f"A weight row of zeros must stay zeros; row {row} is stored as {float(kept[at]):.6g} in column {at}. "
                "Is its scale a division by zero?",
                "dequant",
                (row, at),
                0.0,
                float(kept[at]),
            )
        x = x_of(source)
        x[2] = 0
        y = multiply(runner, x).float()
        for name, values in ((f"output {row}, whose weight row is zero", y[:, row]), ("a token of zeros", y[2])):
            if not bool((values == 0).all()):
                at = int((values != 0).to(torch.uint8).argmax())
                return Finding(
                    f"{name} must give zeros; it gives {float(values[at]):.6g}.", "y", (), 0.0, float(values[at])
                )
        return None

    def odd_shapes(runner: Runner, source: Source) -> Finding | None:
        width = inputs + 1
        weight = draw_tensor(source, (OUTPUTS, width), torch_dtype, environment.device, scale=width**-0.5)
        try:
            pack(runner, weight)
        except CallFailed:
            return None
        finding = compare_stored(stored(runner, (OUTPUTS, width)), weight, header.quality_class)
        if finding is None:
            return None
        return Finding(
            f"An input size of {width} is beyond its declared multiple of {caps.multiple_of}; it must refuse such a weight "
            f"or be right, but: {finding.sentence}"
        )

    def again(runner: Runner, source: Source) -> Finding | None:
        pack(runner, weight_of(source))
        x = x_of(source)
        first, second = multiply(runner, x), multiply(runner, x)
        return same_bits("y", second, first, "The same call gave other bits the second time.")

    checks = [
        Property("token independence", "A token's result does not depend on the other tokens of the batch.", tokens),
        Property("scale of inputs", "Eight times the input gives eight times the output.", homogeneous),
        Property("scale of weights", "Small and large weights are stored as well as usual ones.", small_weights),
        Property("zeros", "Zero rows of weights and tokens give zeros.", zero_rows),
    ]
    if caps.multiple_of > 1:
        checks.append(Property("refusal", "Shapes beyond the declared limits are refused, or right.", odd_shapes))
    if caps.deterministic:
        checks.append(Property("determinism", "The same call gives the same bits.", again))
    return checks
