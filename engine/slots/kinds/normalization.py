"""How normalization is judged."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from engine.reference.normalization import rms_norm
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
from engine.slots.kinds.pointwise import pointwise_cases, vary_pointwise
from engine.slots.places import APART, Earlier, both_ways, put, takes_out
from engine.slots.registry import SlotError
from engine.slots.source import Source
from engine.slots.steps import follows, must_hold_all, signed_by_many, with_all_taken
from engine.workloads.pointwise import NORMALIZATION_CPU, NORMALIZATION_CUDA, NORMALIZATION_UNIT

EPS = 1e-5
OUTPUTS = ("y", "residual")


class NormalizationKind(SlotKind):
    """Cases are one or several RMS normalizations in a row, with and without a residual."""

    name = "normalization"
    title = "RMS normalization"
    default = "plain"
    parts_of_a_pair = 3

    # -- the judge's side -------------------------------------------------------------------------------------------

    def why_not(self, header: Header, environment: Environment) -> list[str]:
        """Reasons, as sentences, for which the implementation cannot be judged here."""
        return why_not(header, environment)

    def cases(self, suite: Suite, header: Header, environment: Environment) -> Sequence[Case]:
        """The workloads of the suite and device."""
        performance = NORMALIZATION_CUDA if environment.device == "cuda" else NORMALIZATION_CPU
        return pointwise_cases(suite, header, environment, NORMALIZATION_UNIT if suite == "unit" else performance)

    def vary(self, case: Case, source: Source) -> Case:
        """Other tokens and distributions."""
        return vary_pointwise(case, source)

    def held(self, case: Case, source: Source) -> HeldSet:
        """weight: [repeat, D] around 1."""
        weight = draw_tensor(source, (case["repeat"], case["width"]), torch.float32, case["device"], scale=0.3) + 1.0
        return {"weight": Held(weight.to(TensorSpec((), case.dtype).torch_dtype), "read")}

    def draw(self, case: Case, held: HeldSet, source: Source) -> Call:
        """x and, where the case has one, residual: [repeat * T, D]."""
        dtype = TensorSpec((), case.dtype).torch_dtype
        size = (case["tokens"] * case["repeat"], case["width"])
        # Hidden states grow over the layers of a real model; eps must matter for the small ones.
        scale = source.choice((0.02, 1.0, 8.0))
        inputs = {"x": draw_tensor(source, size, dtype, case["device"], case["values"], scale)}
        if case["residual"]:
            # Where steps follow each other, what a sign changes in x must not drown in the residual.
            share = 0.5 if follows(case, "repeat") else 1.0
            inputs["residual"] = draw_tensor(source, size, dtype, case["device"], "normal", share * scale)
        call = norm_call(case, inputs)
        if case["suite"] == "performance" and not case["residual"]:
            # It is x, which the engine has for nothing: a copy of it is no part of the work.
            del call.outputs["residual"]
        call.params["follows"] = follows(case, "repeat")
        call.recorded = case["recorded"]
        return call

    def ways(self, call: Call) -> list[Call]:
        """With a place for the result, and as the engine calls it."""
        return both_ways(call)

    def followed(self, call: Call, outputs: Mapping[str, Tensor]) -> Call:
        """x of each normalization: of the later ones, `signed_by_many` the y before."""
        return with_all_taken(call, "x", signed_by_many, outputs["y"], "repeat")

    def expected(self, case: Case, held: HeldSet, call: Call) -> dict[str, Tensor]:
        """The definition, accumulated in float32."""
        must_hold_all(call.params)
        outputs = self.each(held["weight"].tensor, call)
        y = torch.cat([rms_norm(x, residual, weight, EPS)[0] for x, residual, weight in outputs])
        x, residual = call.inputs["x"], call.inputs.get("residual")
        return {"y": y, "residual": (x if residual is None else x + residual).float()}

    def plain(self, case: Case, held: HeldSet, call: Call) -> dict[str, Tensor]:
        """The usual two roundings: the normalized rows to the dtype, then the product with the weight."""
        x, residual = call.inputs["x"], call.inputs.get("residual")
        hidden = x if residual is None else x + residual
        rows = []
        for part, weight in zip(hidden.chunk(case["repeat"]), held["weight"].tensor, strict=True):
            normal = functional.rms_norm(part.float(), part.shape[-1:], eps=EPS).to(part.dtype)
            rows.append(normal * weight)
        return {"y": torch.cat(rows), "residual": hidden}

    @staticmethod
    def each(weights: Tensor, call: Call) -> list[tuple[Tensor, Tensor | None, Tensor]]:
        """(x, residual, weight) of each of the call's normalizations."""
        parts = call.inputs["x"].chunk(len(weights))
        residual = call.inputs.get("residual")
        residuals = [None] * len(weights) if residual is None else list(residual.chunk(len(weights)))
        return list(zip(parts, residuals, weights, strict=True))

    def compare(
        self,
        case: Case,
        header: Header,
        got: Mapping[str, Tensor],
        expected: Mapping[str, Tensor],
        plain: Mapping[str, Tensor] | None,
    ) -> Finding | None:
        """y by class; the residual bit for bit, because every later layer builds on it."""
        finding = compare_output(
            "y",
            got["y"],
            expected["y"],
            None if plain is None else plain["y"],
            case.dtype,
            header.quality_class,
            "token",
        )
        if finding is not None or "residual" not in got:
            return finding
        if header.quality_class == "E":
            sentence = (
                "The residual is not x + residual rounded once." if case["residual"] else "The residual is not x."
            )
            return same_bits("residual", got["residual"], expected["residual"], sentence)
        return compare_output(
            "residual", got["residual"], expected["residual"], None, case.dtype, header.quality_class, "token"
        )

    def properties(self, header: Header, environment: Environment) -> Sequence[Property]:
        """Row independence, independence of scale, eps, determinism."""
        dtype = dtypes_for(header, environment)[0]
        params: dict[str, Scalar] = {
            "tokens": 12,
            "width": 192,
            "residual": True,
            "repeat": 1,
            "recorded": False,
            "values": "long-tailed",
            "suite": "unit",
            "device": environment.device,
        }
        case = Case("property", dtype, params)

        def run(runner: Runner, source: Source, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            runner.hold(self.held(case, source.child("weight")))
            return runner.run(norm_call(case, inputs))

        def rows(runner: Runner, source: Source) -> Finding | None:
            call = self.draw(case, {}, source)
            order = permutation(source, call.inputs["x"].shape[0])
            first = run(runner, source, call.inputs)["y"]
            second = run(runner, source, {name: value[order] for name, value in call.inputs.items()})["y"]
            differs = differing_rows(first[order], second, dtype)
            if not bool(differs.any()):
                return None
            row = int(differs.to(torch.uint8).argmax())
            return Finding(
                f"Rows are not independent: with the rows in another order, the result of row {order[row]} is another."
            )

        def zeros(runner: Runner, source: Source) -> Finding | None:
            call = self.draw(case, {}, source)
            inputs = {name: value.clone() for name, value in call.inputs.items()}
            inputs["x"][3] = 0
            inputs["residual"][3] = 0
            y = run(runner, source, inputs)["y"]
            if bool((y[3] == 0).all()):
                return None
            return Finding(
                f"A row of zeros must give zeros (eps keeps it from dividing by nothing); it gives {float(y[3, 0]):.6g}.",
                "y",
                (3, 0),
                0.0,
                float(y[3, 0]),
            )

        def small(runner: Runner, source: Source) -> Finding | None:
            call = self.draw(case, {}, source)
            # With a mean square of about eps, the result hinges on where eps is added.
            inputs = {
                name: (value.float() / value.float().pow(2).mean().sqrt() * EPS**0.5).to(value.dtype)
                for name, value in call.inputs.items()
            }
            held = self.held(case, source.child("weight"))
            got = run(runner, source, inputs)
            tried = norm_call(case, inputs)
            finding = self.compare(case, header, got, self.expected(case, held, tried), self.plain(case, held, tried))
            if finding is None:
                return None
            return Finding(
                f"Rows with a mean square near eps come out wrong: eps = {EPS} belongs inside the root. {finding.sentence}",
                finding.output,
                finding.index,
                finding.expected,
                finding.got,
            )

        def again(runner: Runner, source: Source) -> Finding | None:
            call = self.draw(case, {}, source)
            first, second = run(runner, source, call.inputs), run(runner, source, call.inputs)
            for name in ("y", "residual"):
                finding = same_bits(name, second[name], first[name], "The same call gave other bits the second time.")
                if finding is not None:
                    return finding
            return None

        checks = [
            Property("row independence", "A row's result depends on no other row.", rows),
            Property("zero rows", "A row of zeros gives zeros.", zeros),
            Property("eps", "Rows with a mean square near eps are right.", small),
        ]
        if Caps.of(header).deterministic:
            checks.append(Property("determinism", "The same call gives the same bits.", again))
        return checks

    def work(self, case: Case, held: HeldSet, call: Call) -> Work:
        """Reading the inputs and writing the outputs once; without a residual the second output may be x itself."""
        x = call.inputs["x"]
        streams = 4 if case["residual"] else 2
        return Work(streams * x.numel() * x.element_size(), 4 * x.numel())

    def proxy(self, runner: Runner, header: Header) -> Any:
        """A class to be used in place of the implementation's, whose instances forward to `runner`."""

        class Remote(RemoteNormalization):
            channel = NormalizationChannel(runner)

        return Remote

    # -- the host's side --------------------------------------------------------------------------------------------

    def why_malformed(self, implementation: type[Any]) -> list[str]:
        """What the class lacks of the contract."""
        return lacking(implementation, ("forward",), "normalization")

    def driver(self, implementation: type[Any]) -> Driver:
        """Makes one instance for each eps."""
        return NormalizationDriver(implementation)


def norm_call(case: Case, inputs: dict[str, Tensor]) -> Call:
    """The call for x and, where given, residual: [repeat * T, D], with the held `weight` [repeat, D]."""
    spec = TensorSpec.of(inputs["x"])
    params: dict[str, Scalar] = {"eps": EPS, "repeat": case["repeat"], "weight": "weight"}
    return Call("norm", params, inputs, {"y": spec, "residual": spec})


class NormalizationDriver:
    """Runs in the host.

    into: where a host wants outputs, by name.
    """

    def __init__(self, implementation: type[Any]) -> None:
        self.implementation = implementation
        self.takes_out = takes_out(implementation.forward)
        self.instances: dict[float, Any] = {}
        self.into: Mapping[str, Tensor] = {}

    def prepare(self, operation: str, params: Mapping[str, Scalar], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """There is nothing to prepare."""
        raise ValueError(f"normalization has no preparation {operation!r}.")

    def run(
        self, operation: str, params: Mapping[str, Scalar], inputs: Mapping[str, Tensor], held: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """norm: one normalization for each row of the held weight."""
        if operation != "norm":
            raise ValueError(f"normalization has no operation {operation!r}.")
        eps = float(params["eps"] or 0.0)
        if eps not in self.instances:
            self.instances[eps] = self.implementation(eps)
        forward = self.instances[eps].forward
        weight = held[str(params["weight"])]
        repeat = int(params["repeat"] or 1)
        x, residual = inputs["x"], inputs.get("residual")
        wanted = self.into or {name: torch.empty_like(x) for name in OUTPUTS}
        places = [
            dict(zip(wanted, of_one, strict=True))
            for of_one in zip(*(w.chunk(repeat) for w in wanted.values()), strict=True)
        ]
        earlier: dict[str, list[Earlier]] = {name: [] for name in wanted}
        parts, residuals = x.chunk(repeat), [None] * repeat if residual is None else residual.chunk(repeat)
        for number, (part, of_it, weights) in enumerate(zip(parts, residuals, weight.unbind(), strict=True)):
            place = places[number]
            taken = signed_by_many(part, places[number - 1]["y"]) if number and params.get("follows") else part
            # Without a residual the second result is what was given.
            offers = self.takes_out and not params.get(APART)
            room = {"out": (place["y"], None if of_it is None else place["residual"])} if offers else {}
            given = dict(zip(OUTPUTS, pair_of(forward(taken, of_it, weights, **room)), strict=True))
            for name in wanted:
                put(repr(name), given[name], place[name], earlier[name])
        return dict(wanted)


def pair_of(given: Any) -> tuple[Any, Any]:
    """What `forward` returned. Raises SlotError where these are not two."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise SlotError("`forward` must return two tensors: what was normalized, and x + residual.")
    return given[0], given[1]


class NormalizationChannel:
    """What the remote normalizations of one engine share."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.names: dict[int, tuple[str, Tensor]] = {}
        """Names of the weights that the host holds, by address; the tensor is kept so that the address stays its own."""

    def name_of(self, weight: Tensor) -> str:
        """The name under which the host holds `weight`, sharing it where this is the first time."""
        known = self.names.get(weight.data_ptr())
        if known is None:
            name = f"norm.{len(self.names)}"
            self.runner.hold({name: Held(weight.detach()[None].contiguous(), "read")})
            known = self.names[weight.data_ptr()] = (name, weight)
        return known[0]


class RemoteNormalization:
    """A `Normalization` in the judge's engine."""

    channel: ClassVar[NormalizationChannel]

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Normalizes in the host. Raises CallFailed."""
        inputs = {"x": x.contiguous()}
        if residual is not None:
            inputs["residual"] = residual.contiguous()
        spec = TensorSpec.of(x)
        params: dict[str, Scalar] = {"eps": self.eps, "repeat": 1, "weight": self.channel.name_of(weight)}
        got = self.channel.runner.run(Call("norm", params, inputs, {"y": spec, "residual": spec}))
        return got["y"], got["residual"]


NORMALIZATION = NormalizationKind()
