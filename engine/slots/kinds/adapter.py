"""How adapters are judged: the operators that they bind, one by one, and what they say of the hardware."""

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from engine.reference.activation import swiglu
from engine.reference.linear import linear
from engine.reference.normalization import rms_norm
from engine.reference.operators import causal_attention, softmax
from engine.slots.caps import Caps, dtypes_for, why_not
from engine.slots.compare import compare_output, differing_rows
from engine.slots.drawing import DISTRIBUTIONS, draw_tensor, permutation
from engine.slots.header import Header
from engine.slots.kind import (
    Call,
    Case,
    Driver,
    Environment,
    Finding,
    Held,
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
from engine.slots.places import APART, both_ways, takes_out
from engine.slots.source import Source
from engine.workloads.operators import CPU, CUDA, UNIT, OperatorWorkload

OPERATORS = ("linear", "rms_norm", "softmax", "swiglu", "attention")
EPS = 1e-5
NAME_BYTES = 64


class AdapterKind(SlotKind):
    """Cases are calls of one operator each; an adapter is judged on those that its header says it binds."""

    name = "adapter"
    title = "Hardware adapter"
    default = "generic"

    # -- the judge's side -------------------------------------------------------------------------------------------

    def why_not(self, header: Header, environment: Environment) -> list[str]:
        """Reasons, as sentences, for which the adapter cannot be judged here."""
        reasons = why_not(header, environment)
        if reasons:
            return reasons
        caps = Caps.of(header)
        unknown = [name for name in caps.operators if name not in OPERATORS]
        if unknown or not caps.operators:
            reasons.append(
                f"The header's 'operators' must list what the adapter binds, of {', '.join(OPERATORS)}"
                + (f"; {', '.join(unknown)} is none of them." if unknown else ".")
            )
        if caps.machines and platform.machine() not in caps.machines:
            reasons.append(f"It is for {', '.join(caps.machines)}; this machine is {platform.machine()}.")
        return reasons

    def cases(self, suite: Suite, header: Header, environment: Environment) -> Sequence[Case]:
        """Unit: every workload of a bound operator in every dtype. Performance: in the first dtype both sides know."""
        caps = Caps.of(header)
        dtypes = dtypes_for(header, environment)
        workloads: Sequence[OperatorWorkload] = UNIT
        if suite == "performance":
            workloads = CUDA if environment.device == "cuda" else CPU
            preferred = "bfloat16" if environment.device == "cuda" else "float32"
            dtypes = [preferred] if preferred in dtypes else dtypes[:1]
        return [
            self.case(workload, dtype, environment.device, suite)
            for workload in workloads
            if workload.operator in caps.operators
            for dtype in dtypes
        ]

    @staticmethod
    def case(workload: OperatorWorkload, dtype: str, device: str, suite: Suite) -> Case:
        """The case of a workload in a dtype on a device."""
        params: dict[str, Scalar] = {
            "operator": workload.operator,
            "rows": workload.rows,
            "inputs": workload.inputs,
            "outputs": workload.outputs,
            "heads": workload.heads,
            "values": "normal",
            "suite": suite,
            "device": device,
        }
        return Case(f"{workload.name}-{dtype}" if suite == "unit" else workload.name, dtype, params)

    def vary(self, case: Case, source: Source) -> Case:
        """Another distribution; another number of rows where there are many."""
        rows = int(case["rows"])
        if rows > 40 and case["operator"] != "attention":
            rows += source.integer(-(rows // 50), rows // 50)
        values = source.choice(DISTRIBUTIONS if case["suite"] == "unit" else ("normal", "long-tailed"))
        return Case(case.name, case.dtype, {**case.params, "rows": rows, "values": values})

    def held(self, case: Case, source: Source) -> HeldSet:
        """weight, where the operator has one."""
        dtype = TensorSpec((), case.dtype).torch_dtype
        inputs, device = int(case["inputs"]), case["device"]
        if case["operator"] == "linear":
            weight = draw_tensor(source, (int(case["outputs"]), inputs), dtype, device, scale=inputs**-0.5)
            return {"weight": Held(weight, "read")}
        if case["operator"] == "rms_norm":
            weight = draw_tensor(source, (inputs,), torch.float32, device, scale=0.3) + 1.0
            return {"weight": Held(weight.to(dtype), "read")}
        return {}

    def draw(self, case: Case, held: HeldSet, source: Source) -> Call:
        """x [rows, inputs], or q, k and v [1, heads, rows or inputs, outputs]."""
        dtype = TensorSpec((), case.dtype).torch_dtype
        rows, inputs, device = int(case["rows"]), int(case["inputs"]), case["device"]
        if case["operator"] == "attention":
            heads, channels = int(case["heads"]), int(case["outputs"])

            def drawn(tokens: int) -> Tensor:
                return draw_tensor(source, (heads, tokens, channels), dtype, device, case["values"])[None]

            return operator_call(case, {"q": drawn(rows), "k": drawn(inputs), "v": drawn(inputs)})
        return operator_call(case, {"x": draw_tensor(source, (rows, inputs), dtype, device, case["values"])})

    def ways(self, call: Call) -> list[Call]:
        """Row-wise operators with a place for the result, and as the engine calls them."""
        return both_ways(call) if call.params["operator"] in ROW_WISE else [call]

    def expected(self, case: Case, held: HeldSet, call: Call) -> dict[str, Tensor]:
        """The operator's definition in float32.

        Products of the unit suite that are themselves in float32 are in float64: else the plain path would have no error
        of its own, and what is nearer to the truth than it would be taken for wrong.
        """
        operator, inputs = case["operator"], call.inputs
        finer = torch.float64 if case["suite"] == "unit" and case.dtype == "float32" else torch.float32
        if operator == "linear":
            return {"y": linear(inputs["x"], held["weight"].tensor, finer).float()}
        if operator == "rms_norm":
            return {"y": rms_norm(inputs["x"], None, held["weight"].tensor, EPS)[0]}
        if operator == "softmax":
            return {"y": softmax(inputs["x"])}
        if operator == "swiglu":
            return {"y": swiglu(inputs["x"])}
        return {"y": causal_attention(inputs["q"], inputs["k"], inputs["v"], scale_of(case), finer).float()}

    def plain(self, case: Case, held: HeldSet, call: Call) -> dict[str, Tensor]:
        """The operator in the case's dtype."""
        operator, inputs = case["operator"], call.inputs
        if operator == "linear":
            return {"y": functional.linear(inputs["x"], held["weight"].tensor)}
        if operator == "rms_norm":
            x = inputs["x"]
            return {"y": functional.rms_norm(x.float(), x.shape[-1:], eps=EPS).to(x.dtype) * held["weight"].tensor}
        if operator == "softmax":
            return {"y": inputs["x"].softmax(-1)}
        if operator == "swiglu":
            gate, up = inputs["x"].chunk(2, dim=-1)
            return {"y": functional.silu(gate) * up}
        q, k, v = inputs["q"], inputs["k"], inputs["v"]
        return {"y": causal_attention(q, k, v, scale_of(case), q.dtype)}

    def compare(
        self,
        case: Case,
        header: Header,
        got: Mapping[str, Tensor],
        expected: Mapping[str, Tensor],
        plain: Mapping[str, Tensor] | None,
    ) -> Finding | None:
        """y by class."""
        yardstick = None if plain is None else plain["y"]
        return compare_output(
            case["operator"], got["y"], expected["y"], yardstick, case.dtype, header.quality_class, "row"
        )

    def properties(self, header: Header, environment: Environment) -> Sequence[Property]:
        """What it says of the hardware; independence of rows."""
        dtype = dtypes_for(header, environment)[0]

        def hardware(runner: Runner, source: Source) -> Finding | None:
            spec = {"name": TensorSpec((NAME_BYTES,), "uint8"), "peaks": TensorSpec((2,), "float64")}
            got = runner.run(Call("describe", {"dtype": dtype}, {}, spec))
            if not bool(got["name"].any()):
                return Finding("detect() returned None on a machine that its header says it is for.")
            for what, unit, value in zip(
                ("peak_bytes_per_s", "peak_flops"), ("bytes/s", "FLOP/s"), got["peaks"].tolist(), strict=True
            ):
                if not math.isfinite(value) or not 1e8 <= value <= 1e17:
                    return Finding(f"{what}() gives {value:.4g} {unit}, which no hardware has.")
            return None

        def rows(runner: Runner, source: Source) -> Finding | None:
            for workload in UNIT:
                if workload.operator not in Caps.of(header).operators or workload.operator == "attention":
                    continue
                case = self.case(workload, dtype, environment.device, "unit")
                runner.hold(self.held(case, source.child(workload.name)))
                call = self.draw(case, {}, source)
                order = permutation(source, call.inputs["x"].shape[0])
                first = runner.run(call)["y"]
                second = runner.run(operator_call(case, {"x": call.inputs["x"][order]}))["y"]
                differs = differing_rows(first[order], second, dtype)
                if bool(differs.any()):
                    row = order[int(differs.to(torch.uint8).argmax())]
                    return Finding(
                        f"{workload.operator}: rows are not independent; with the rows in another order, the result of "
                        f"row {row} is another."
                    )
            return None

        return [
            Property("hardware", "It recognises the hardware and names plausible peaks.", hardware),
            Property("row independence", "A row's result depends on no other row.", rows),
        ]

    def work(self, case: Case, held: HeldSet, call: Call) -> Work:
        """Reading the inputs and writing the output once."""
        moved = sum(tensor.nbytes for tensor in call.inputs.values())
        moved += sum(spec.nbytes for spec in call.outputs.values())
        moved += sum(entry.tensor.nbytes for entry in held.values())
        rows, inputs, outputs = int(case["rows"]), int(case["inputs"]), int(case["outputs"])
        if case["operator"] == "linear":
            return Work(moved, 2 * rows * inputs * outputs)
        if case["operator"] == "attention":
            pairs = sum(range(inputs - rows + 1, inputs + 1))
            return Work(moved, 4 * pairs * int(case["heads"]) * outputs)
        return Work(moved, 2 * rows * inputs)

    def proxy(self, runner: Runner, header: Header) -> Any:
        """An `Adapter` that forwards its operators through `runner`."""
        return RemoteAdapter(runner, Caps.of(header).operators)

    # -- the host's side --------------------------------------------------------------------------------------------

    def why_malformed(self, implementation: type[Any]) -> list[str]:
        """What the class lacks of the contract."""
        return lacking(implementation, ("detect", "peak_bytes_per_s", "peak_flops", "operators"), "adapter")

    def driver(self, implementation: type[Any]) -> Driver:
        """Makes one instance."""
        return AdapterDriver(implementation())


def scale_of(case: Case) -> float:
    """The scale of the scores."""
    return 1.0 / math.sqrt(int(case["outputs"]))


def operator_call(case: Case, inputs: dict[str, Tensor]) -> Call:
    """The call of the case's operator."""
    first = inputs["q"] if "q" in inputs else inputs["x"]
    shape = list(first.shape)
    if case["operator"] == "linear":
        shape[-1] = int(case["outputs"])
    if case["operator"] == "swiglu":
        shape[-1] //= 2
    params: dict[str, Scalar] = {"operator": case["operator"], "eps": EPS}
    if case["operator"] == "attention":
        params["scale"] = scale_of(case)
    return Call("operator", params, inputs, {"y": TensorSpec(tuple(shape), case.dtype)})


def apply_operator(
    function: Callable[..., Tensor],
    params: Mapping[str, Scalar],
    inputs: Mapping[str, Tensor],
    weight: Tensor | None,
    out: Tensor | None,
) -> Tensor:
    """Calls an operator with the arguments that its name stands for. out: where a row-wise one that takes it is told to put its result."""
    room = {} if out is None else {"out": out}
    operator = params["operator"]
    if operator == "linear":
        return function(inputs["x"], weight)
    if operator == "rms_norm":
        return function(inputs["x"], weight, float(params["eps"] or 0.0), **room)
    if operator == "attention":
        return function(inputs["q"], inputs["k"], inputs["v"], float(params["scale"] or 0.0))
    return function(inputs["x"], **room)


ROW_WISE = ("rms_norm", "softmax", "swiglu")
"""Operators that are told where their results are wanted: a copy costs these the most, and PyTorch can write to a place in them."""


class AdapterDriver:
    """Runs in the host.

    into: where a host wants outputs, by name.
    """

    def __init__(self, adapter: Any) -> None:
        self.adapter = adapter
        self.operators: dict[str, Callable[..., Tensor]] = dict(adapter.operators())
        self.taking_out = {n for n in ROW_WISE if n in self.operators and takes_out(self.operators[n])}
        self.into: Mapping[str, Tensor] = {}

    def prepare(self, operation: str, params: Mapping[str, Scalar], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """There is nothing to prepare."""
        raise ValueError(f"adapter has no preparation {operation!r}.")

    def run(
        self, operation: str, params: Mapping[str, Scalar], inputs: Mapping[str, Tensor], held: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """operator: one of those bound. describe: the name, as bytes, and the two peaks."""
        if operation == "describe":
            name = (self.adapter.detect() or "").encode()[:NAME_BYTES]
            peaks = [float(self.adapter.peak_bytes_per_s()), float(self.adapter.peak_flops(str(params["dtype"])))]
            text = torch.tensor(list(name.ljust(NAME_BYTES, b"\0")), dtype=torch.uint8)
            return {"name": text, "peaks": torch.tensor(peaks, dtype=torch.float64)}
        if operation != "operator":
            raise ValueError(f"adapter has no operation {operation!r}.")
        name = str(params["operator"])
        if name not in self.operators:
            raise KeyError(f"The header lists the operator {name!r}, but operators() does not bind it.")
        weight = held.get(str(params.get("weight") or "weight"))
        out = self.into.get("y") if name in self.taking_out and not params.get(APART) else None
        return {"y": apply_operator(self.operators[name], params, inputs, weight, out)}


class RemoteAdapter:
    """An `Adapter` in the judge's engine."""

    def __init__(self, runner: Runner, bound: Sequence[str]) -> None:
        self.runner = runner
        self.bound = bound
        self.names: dict[int, tuple[str, Tensor]] = {}
        """Names of the weights that the host holds, by address; the tensor is kept so that the address stays its own."""

    def detect(self) -> str | None:
        """The judge has asked before."""
        return "remote"

    def peak_bytes_per_s(self) -> float:
        """Unknown to the engine."""
        return math.inf

    def peak_flops(self, dtype: str) -> float:
        """Unknown to the engine."""
        return math.inf

    def operators(self) -> dict[str, Callable[..., Tensor]]:
        """One function for each bound operator."""
        functions: dict[str, Callable[..., Tensor]] = {
            "linear": self.linear,
            "rms_norm": self.rms_norm,
            "softmax": lambda x: self.call("softmax", {"x": x}, x.shape),
            "swiglu": lambda x: self.call("swiglu", {"x": x}, (*x.shape[:-1], x.shape[-1] // 2)),
            "attention": lambda q, k, v, scale: self.call(
                "attention", {"q": q, "k": k, "v": v}, q.shape, {"scale": scale}
            ),
        }
        return {name: functions[name] for name in self.bound}

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """[T, in] times [out, in] transposed, in the host. Raises CallFailed."""
        return self.call("linear", {"x": x}, (x.shape[0], weight.shape[0]), {"weight": self.name_of(weight)})

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMS normalization in the host. Raises CallFailed."""
        return self.call("rms_norm", {"x": x}, x.shape, {"weight": self.name_of(weight), "eps": eps})

    def name_of(self, weight: Tensor) -> str:
        """The name under which the host holds `weight`, sharing it where this is the first time."""
        known = self.names.get(weight.data_ptr())
        if known is None:
            name = f"weight.{len(self.names)}"
            self.runner.hold({name: Held(weight.detach().contiguous(), "read")})
            known = self.names[weight.data_ptr()] = (name, weight)
        return known[0]

    def call(
        self,
        operator: str,
        inputs: dict[str, Tensor],
        shape: Sequence[int],
        params: dict[str, Scalar] | None = None,
    ) -> Tensor:
        """One message. Raises CallFailed."""
        inputs = {name: value.contiguous() for name, value in inputs.items()}
        dtype = TensorSpec.of(next(iter(inputs.values()))).dtype
        call = Call(
            "operator", {"operator": operator, **(params or {})}, inputs, {"y": TensorSpec(tuple(shape), dtype)}
        )
        return self.runner.run(call)["y"]


ADAPTER = AdapterKind()
