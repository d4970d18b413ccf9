"""How quantization is judged: what was stored against the weight, and products against what was stored.

Packing runs in a host of its own. The hosts that multiply get only the packed tensors, so that nothing of the original
weight can reach them beside what `pack` returned, and the bytes that count are all there is.

Of what they hold, a few rows are those of another weight in each timed call. Whoever multiplies with a copy that it unpacked
earlier, whose bytes nobody counts, is nearer to what was true before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from engine.reference.linear import linear
from engine.slots.caps import Caps, dtypes_for, why_not
from engine.slots.compare import compare_output, diagnosis, stale
from engine.slots.drawing import DISTRIBUTIONS, draw_tensor, generator_on, permutation
from engine.slots.header import Header
from engine.slots.kind import (
    Call,
    CallFailed,
    Case,
    Driver,
    Environment,
    Figures,
    Finding,
    Held,
    HeldSet,
    Preparation,
    Property,
    Rewrites,
    Runner,
    Scalar,
    SlotKind,
    Suite,
    TensorSpec,
    Work,
    bits,
)
from engine.slots.kinds.attention import lacking
from engine.slots.places import Earlier, put
from engine.slots.quantization import Packed
from engine.slots.source import Source
from engine.slots.steps import put_signs
from engine.workloads.linear import CPU, CUDA, UNIT, LinearWorkload

STORED = {"E": 1e-6, "Q8": 0.125, "Q4": 0.25, "S": 0.125}
"""Largest error of a stored weight by class, as a share of the weight: overall (Frobenius), and of the largest magnitude
in each group of 64.

These catch a weight that is not the weight. They do not decide the class: a scheme may trade error of the weight for
error of the outputs, and what it does to a model is measured on a model."""

STORED_ERROR = "relative error of the weight"
BITS = "bits per weight"
FACES = 3.0
"""How much larger the stored error of a timed weight may be than that of the quality model's: rows of other lengths and distributions differ by less
than twice, 8 bits from 4 by twelve times."""
FACES_BITS = 0.8
FACES_FEWER = 1.5
"""With fewer than `FACES_BITS` of their bits, its error may be `FACES_FEWER` times theirs: what each row or matrix keeps besides weighs more where these
are small, and scales of groups where rows are short."""
FACES_LEAST = 2.0**-8
"""With as many bits, an error that is always allowed: a model whose weights 16 bits hold exactly says nothing of others."""
BORNE_OUT = 1.75
"""The model's error counts as at most this many times that of a model whose matrices are disturbed at random and which is as bad: of 20 schemes that round, from 8 bits to 4, 0.85 to 1.66."""

GROUP = 64

PARTS = 1024
"""Rows of a timed weight that another row may stand for in a call, at most."""
CHANGED = 32
"""How many of them do, about."""
LARGEST_CACHE = 64 << 20
NEARER = 0.9
"""A copy of an earlier state is about 0.7 times as far from what was before as from what should be."""

PROMPT = 256
"""Tokens from which on a case is a prompt: products then take longer than reading the weight does."""
UNPACKING = 0.05
"""What a prompt may lose. A weight that is stored in fewer bits is unpacked for its products, which there decide the time: 1 % on one make of processor,
4 % on another. Decoding, which such a weight is stored for, may lose nothing."""
FEWER = 0.9
"""Of base's bits: a tenth less is also what a merge is worth for."""

UNPACKED_BYTES = 16
"""For each element of one weight, while it is multiplied with: unpacking by PyTorch's operators in float32 needs ten to thirteen."""

PART_WEIGHTS = 2
"""Of the weights of a case, drawn from the seed: storing all of them once more would take as much again of an accelerator's memory."""
PART = 16
"""One in so many columns of such a row is changed, next to each other: less is found by nobody who does not read them all."""


class QuantizationKind(SlotKind):
    """Cases are one or several linear layers in a row, or an embedding, over packed weights."""

    name = "quantization"
    title = "Quantization"
    default = "none"
    parts_of_a_pair = 2

    # -- the judge's side -------------------------------------------------------------------------------------------

    def why_not(self, header: Header, environment: Environment) -> list[str]:
        """Reasons, as sentences, for which the implementation cannot be judged here."""
        reasons = why_not(header, environment)
        if not reasons and not self.cases("unit", header, environment):
            reasons.append("Its limits leave no case of the unit suite over.")
        return reasons

    def cases(self, suite: Suite, header: Header, environment: Environment) -> Sequence[Case]:
        """Unit: every workload in every dtype. Performance: those of the device, in the first dtype both sides know."""
        caps = Caps.of(header)
        dtypes = dtypes_for(header, environment)
        workloads: Sequence[LinearWorkload] = UNIT
        if suite == "performance":
            workloads = CUDA if environment.device == "cuda" else CPU
            preferred = "bfloat16" if environment.device == "cuda" else "float32"
            dtypes = [preferred] if preferred in dtypes else dtypes[:1]
        return [
            self.case(workload, dtype, environment.device, suite)
            for workload in workloads
            if workload.inputs % caps.multiple_of == 0 and (caps.embedding or not workload.lookup)
            for dtype in dtypes
        ]

    @staticmethod
    def case(workload: LinearWorkload, dtype: str, device: str, suite: Suite) -> Case:
        """The case of a workload in a dtype on a device."""
        params: dict[str, Scalar] = {
            "tokens": workload.tokens,
            "outputs": workload.outputs,
            "inputs": workload.inputs,
            "weights": workload.weights,
            "rounds": workload.rounds,
            "lookup": workload.lookup,
            "recorded": workload.decode and device == "cuda",
            "values": "normal",
            "weight_values": "normal",
            "suite": suite,
            "device": device,
        }
        return Case(f"{workload.name}-{dtype}" if suite == "unit" else workload.name, dtype, params)

    def vary(self, case: Case, source: Source) -> Case:
        """Other distributions of weights and activations; another number of tokens where there are many."""
        tokens = int(case["tokens"])
        if tokens > 20:
            tokens += source.integer(-(tokens // 20), tokens // 20)
        values = source.choice(DISTRIBUTIONS if case["suite"] == "unit" else ("normal", "long-tailed"))
        weights = source.choice(("normal", "long-tailed"))
        return Case(
            case.name, case.dtype, {**case.params, "tokens": tokens, "values": values, "weight_values": weights}
        )

    def held(self, case: Case, source: Source) -> HeldSet:
        """Private: weight [weights, outputs, inputs]."""
        count, outputs, inputs = int(case["weights"]), int(case["outputs"]), int(case["inputs"])
        dtype = TensorSpec((), case.dtype).torch_dtype
        # Of products in a row, each takes up what the one before gave, over and over: it must neither grow nor fade.
        scale = (windows(outputs, inputs) * inputs) ** -0.5 if case["rounds"] > 1 else inputs**-0.5
        weight = draw_tensor(source, (count * outputs, inputs), dtype, case["device"], case["weight_values"], scale)
        weight = weight.view(count, outputs, inputs)
        if case["rounds"] > 1:
            for matrix in weight:
                matrix *= scale / float(matrix.float().square().mean().sqrt())
        return {"weight": Held(weight, "private")}

    def preparation(self, case: Case, held: HeldSet) -> Preparation | None:
        """Packing each weight; the results are named NUMBER/NAME."""
        return Preparation("pack", {}, {"weight": held["weight"].tensor})

    def settle(self, case: Case, header: Header, held: HeldSet, runner: Runner) -> tuple[HeldSet, Finding | None]:
        """Bounds `dequant` against the weight; returns private dequant, float32 [weights, outputs, inputs], and error, float32[], of all of it.

        The weight itself has served then, and is given up.
        """
        weights = held["weight"].tensor
        stored = []
        for number, weight in enumerate(weights):
            spec = TensorSpec(tuple(weight.shape), "float32")
            dequant = runner.run(Call("dequant", {"of": f"{number}/"}, {}, {"weight": spec}))["weight"]
            finding = compare_stored(dequant, weight, header.quality_class)
            if finding is not None:
                return {}, finding
            stored.append(dequant)
        whole = torch.stack(stored)
        error = torch.linalg.vector_norm(whole - weights.float()) / torch.linalg.vector_norm(weights.float())
        found = {"dequant": whole, "error": error, "weight": weights.new_empty(0)}
        return {name: Held(tensor, "private") for name, tensor in found.items()}, None

    def other(self, case: Case, held: HeldSet, source: Source) -> HeldSet | None:
        """weight [n, outputs, inputs]: some of the weights, with some elements of some rows in another order, so that scales and sizes stay
        what they are; numbers, int64[n]: which ones.
        """
        if case["suite"] != "performance" or case["lookup"]:
            return None
        count, outputs, inputs = held["weight"].tensor.shape
        numbers = sorted(permutation(source, count)[:PART_WEIGHTS])
        weight = held["weight"].tensor[numbers]
        generator = source.generator()
        width = max(2, inputs // PART)
        for matrix in weight:
            for row in torch.randperm(outputs, generator=generator)[:PARTS].tolist():
                first = source.integer(0, inputs // width - 1) * width
                piece = matrix[row, first : first + width]
                piece.copy_(piece.roll(source.integer(1, width - 1)))
        return {"weight": Held(weight, "private"), "numbers": Held(torch.tensor(numbers), "private")}

    def parts(self, case: Case, held: HeldSet, other: HeldSet, runner: Runner) -> HeldSet:
        """Private, for each weight NUMBER of `other`: NUMBER:rows int64[n] and NUMBER:dequant [n, inputs], the rows whose stored values differ; and for
        each packed tensor NUMBER/NAME that differs: NUMBER/NAME:at, NUMBER/NAME:to, NUMBER/NAME:part, int64[elements], as in a rewrite and
        which of the rows an element belongs to. Where that cannot be told, all rows are one part.

        Raises CallFailed where the packed tensors have other names or shapes.
        """
        found: dict[str, Tensor] = {}
        for place, number in enumerate(other["numbers"].tensor.tolist()):
            found |= parts_of(number, place, held, other, runner)
        return {name: Held(tensor, "private") for name, tensor in found.items()}

    def draw(self, case: Case, held: HeldSet, source: Source) -> Call:
        """x [weights * T, inputs], or ids int64[T]. Of the later of several rounds, which take up what the one before gave: where a weight has more
        inputs than outputs, bounds [(rounds - 1) * weights, times, T * outputs] (see `following`).
        """
        tokens = int(case["tokens"])
        if case["lookup"]:
            generator = generator_on(source, case["device"])
            ids = torch.randint(case["outputs"], (tokens,), generator=generator, device=case["device"])
            return lookup_call(case, ids)
        dtype = TensorSpec((), case.dtype).torch_dtype
        x = draw_tensor(source, (tokens * case["weights"], case["inputs"]), dtype, case["device"], case["values"])
        later = case["weights"] * (case["rounds"] - 1)
        times = -(-case["inputs"] // case["outputs"])
        bounds = None
        if later and times > 1:
            bounds = draw_tensor(
                source.child("bounds"), (later, times, tokens * case["outputs"]), dtype, case["device"]
            )
        call = linear_call(case, x, bounds)
        call.recorded = case["recorded"]
        for number in range(int(case["weights"])):
            if f"{number}:rows" in held:
                call.parts[number], rewrites = drawn_parts(number, held, source)
                call.rewrites |= rewrites
        return call

    def followed(self, call: Call, outputs: Mapping[str, Tensor]) -> Call:
        """x [rounds * weights * T, inputs]."""
        rounds = int(call.params.get("rounds") or 1)
        x = call.inputs.get("x")
        if rounds == 1 or x is None:
            return call
        count = int(call.params["weights"] or 1)
        parts, given = x.chunk(count), outputs["y"].chunk(rounds * count)
        taken = [taken_by(number, parts, given, call.inputs.get("bounds")) for number in range(rounds * count)]
        return replace(call, inputs={"x": torch.cat(taken)})

    def excerpt(self, call: Call, outputs: Mapping[str, Tensor], source: Source) -> tuple[Call, dict[str, Tensor]]:
        """One of the rounds."""
        rounds = int(call.params.get("rounds") or 1)
        if rounds == 1 or "x" not in call.inputs:
            return super().excerpt(call, outputs, source)
        number = source.integer(0, rounds - 1)
        y = outputs["y"].chunk(rounds)[number]
        one = replace(
            call,
            params={**call.params, "rounds": 1},
            inputs={"x": self.followed(call, outputs).inputs["x"].chunk(rounds)[number].contiguous()},
            outputs={"y": TensorSpec.of(y)},
            recorded=False,
        )
        return one, {"y": y}

    def expected(self, case: Case, held: HeldSet, call: Call) -> dict[str, Tensor]:
        """x times what is stored, in float32; for an embedding, its rows. `before`: the same without the call's rewrites."""
        before = self.product(held["dequant"].tensor, call, torch.float32)
        if not call.parts:
            return {"y": before}
        y, scale = before.clone(), torch.ones_like(before)
        count = int(case["weights"])
        total = count * int(case["rounds"])
        inputs = call.inputs["x"].chunk(total)
        outputs, scales = y.chunk(total), scale.chunk(total)
        for number, chosen in call.parts.items():
            rows, weight = held[f"{number}:rows"].tensor[chosen], held[f"{number}:dequant"].tensor[chosen]
            # Rounding errors are as large as the token and the row: a few large ones must not drown the others.
            size = weight.square().mean(1).sqrt_()
            for place in range(number, total, count):
                outputs[place][:, rows] = linear(inputs[place], weight, torch.float32)
                scales[place][:, rows] = torch.linalg.vector_norm(inputs[place].float(), dim=-1, keepdim=True) * size
        return {"y": y, "before": before, "scale": scale}

    def plain(self, case: Case, held: HeldSet, call: Call) -> dict[str, Tensor]:
        """The same with everything in the case's dtype."""
        return {"y": self.product(held["dequant"].tensor, call, TensorSpec((), case.dtype).torch_dtype)}

    @staticmethod
    def product(weights: Tensor, call: Call, dtype: torch.dtype) -> Tensor:
        """The call computed by the definition in `dtype`."""
        if "ids" in call.inputs:
            return weights[0].to(dtype)[call.inputs["ids"]]
        total = len(weights) * int(call.params["rounds"] or 1)
        if len(call.inputs["x"]) != call.outputs["y"].shape[0]:
            raise ValueError("What later rounds take follows from what earlier ones gave: see `followed`.")
        parts = call.inputs["x"].chunk(total)
        return torch.cat([linear(x, weights[n % len(weights)], dtype) for n, x in enumerate(parts)])

    def compare(
        self,
        case: Case,
        header: Header,
        got: Mapping[str, Tensor],
        expected: Mapping[str, Tensor],
        plain: Mapping[str, Tensor] | None,
    ) -> Finding | None:
        """y by class; and it must be nearer to what it is than to what it was before the call's rewrites."""
        yardstick = None if plain is None else plain["y"]
        finding = compare_output("y", got["y"], expected["y"], yardstick, case.dtype, header.quality_class, "token")
        if "before" not in expected:
            return finding
        if finding is not None:
            # Wrong in the changed rows alone, or altogether?
            off, earlier = (
                float(torch.linalg.vector_norm(got["y"].float() - expected[name])) for name in ("y", "before")
            )
            if not earlier < NEARER * off:
                return finding
        what = "what is stored of a few rows"
        return stale("y", got["y"], expected["y"], expected["before"], expected["scale"], what) or finding

    def properties(self, header: Header, environment: Environment) -> Sequence[Property]:
        """Token independence, scale of activations and weights, zero rows, refusals, determinism."""
        from engine.slots.kinds.quantization_properties import quantization_properties

        return quantization_properties(self, header, environment)

    def work(self, case: Case, held: HeldSet, call: Call) -> Work:
        """Reading the packed bytes and x once, writing y; for an embedding, only the rows that are asked for."""
        tokens, outputs, inputs = int(case["tokens"]), int(case["outputs"]), int(case["inputs"])
        width = TensorSpec((), case.dtype).torch_dtype.itemsize
        packed = sum(entry.tensor.nbytes for entry in held.values() if entry.access == "read")
        if case["lookup"]:
            return Work(tokens * (packed // outputs + inputs * width), 0)
        products = int(case["weights"]) * int(case["rounds"])
        # Gone through again, what is beyond any last-level cache has to be read again.
        packed += (int(case["rounds"]) - 1) * max(0, packed - LARGEST_CACHE)
        moved = packed + products * tokens * (inputs + outputs) * width
        return Work(moved, products * 2 * tokens * outputs * inputs)

    def figures(self, case: Case, held: HeldSet) -> dict[str, float]:
        """Bits per weight, counted from the bytes that were handed over, and the error of what is stored."""
        elements = int(case["weights"]) * int(case["outputs"]) * int(case["inputs"])
        packed = sum(entry.tensor.nbytes for entry in held.values() if entry.access == "read")
        figures = {BITS: 8 * packed / elements}
        if "error" in held:
            figures[STORED_ERROR] = float(held["error"].tensor)
        return figures

    def figures_of_model(self, proxy: Any) -> dict[str, float]:
        """The error of all weights of the model that were packed, together, and the bits that were handed over for each of their elements."""
        error = total = 0.0
        packed_bytes = elements = 0
        for weight, packed in proxy.packed:
            error += float((proxy.dequant(packed) - weight.float()).square().sum())
            total += float(weight.float().square().sum())
            packed_bytes += sum(counted_bytes(tensor, weight) for tensor in packed.values())
            elements += weight.numel()
        return {STORED_ERROR: (error / total) ** 0.5, BITS: 8 * packed_bytes / elements} if total else {}

    def disturbed(self, share: float, generator: torch.Generator) -> Any:
        """Weights that are off at random."""
        return Disturbed(share, generator)

    def borne_out(self, figures: Mapping[str, float], as_bad_as: float) -> dict[str, float]:
        """A module says itself what a weight unpacks to, and can store another that does the same in a model (one that is scaled, where the next is scaled
        back): its error is no larger than what quality bears out."""
        if STORED_ERROR not in figures:
            return dict(figures)
        return {**figures, STORED_ERROR: min(figures[STORED_ERROR], BORNE_OUT * as_bad_as)}

    def may_lose(self, cases: Sequence[Case], base: Sequence[Figures], head: Sequence[Figures]) -> dict[str, float]:
        """Prompts: what unpacking costs, where head stores clearly fewer bits than base in every case."""
        if not all(theirs[BITS] <= FEWER * ours[BITS] for ours, theirs in zip(base, head, strict=True)):
            return {}
        return {case.name: UNPACKING for case in cases if int(case["tokens"]) >= PROMPT and not case["lookup"]}

    def beside_stored(self, case: Case) -> int | None:
        """One of the weights, unpacked: a product may unpack what it multiplies with, and must not keep it."""
        return UNPACKED_BYTES * int(case["outputs"]) * int(case["inputs"])

    def two_faced(self, case: Case, model: Mapping[str, float], timed: Mapping[str, float]) -> Finding | None:
        """A weight that is timed may be off by `FACES` times what those of the model are, whose quality was measured; with clearly fewer bits by less."""
        if not model.keys() & timed.keys() & {STORED_ERROR}:
            return None
        ours, theirs = model[STORED_ERROR], timed[STORED_ERROR]
        # Stored as it comes, a weight has other bits in another dtype.
        bits_of_model = min(model[BITS], 8 * TensorSpec((), case.dtype).torch_dtype.itemsize)
        fewer = timed[BITS] < FACES_BITS * bits_of_model
        allowed = FACES_FEWER * ours + STORED["E"] if fewer else max(FACES * ours, FACES_LEAST)
        if theirs <= allowed:
            return None
        return Finding(
            f"The weights that are timed are stored in {timed[BITS]:.2f} bits per element with an error of {theirs:.2%}, those of the model whose "
            f"quality was measured in {bits_of_model:.2f} with {ours:.2%}. Sizes must not decide how coarsely a weight is stored.",
            "pack" if fewer else "dequant",
            figures={"relative error": theirs, "allowed relative error": allowed},
        )

    def proxy(self, runner: Runner, header: Header) -> Any:
        """A `Quantization` that packs and multiplies through `runner`; packed tensors are shared once."""
        if Caps.of(header).embedding:
            return RemoteEmbeddingQuantization(runner)
        return RemoteQuantization(runner)

    # -- the host's side --------------------------------------------------------------------------------------------

    def why_malformed(self, implementation: type[Any]) -> list[str]:
        """What the class lacks of the contract."""
        return lacking(implementation, ("pack", "linear", "dequant"), "quantization")

    def driver(self, implementation: type[Any]) -> Driver:
        """Makes one instance."""
        return QuantizationDriver(implementation())


def follows_dtype(tensor: Tensor, weight: Tensor) -> bool:
    """Whether a packed tensor of the model, which computes in float32, counts as one of 16 bits: on an accelerator cases compute in these, and so do
    scales that follow a weight's dtype."""
    return tensor.is_cuda and tensor.dtype == torch.float32 and tensor.numel() < weight.numel()


def counted_bytes(tensor: Tensor, weight: Tensor) -> int:
    """The bytes of a packed tensor of the model, as they would be where cases are timed."""
    return tensor.nbytes // 2 if follows_dtype(tensor, weight) else tensor.nbytes


class Disturbed:
    """Weights that are off at random, by `share` of the size of their row, and products with them."""

    def __init__(self, share: float, generator: torch.Generator) -> None:
        self.share = share
        self.generator = generator

    def pack(self, weight: Tensor) -> Packed:
        """The weight, and noise."""
        size = weight.float().square().mean(1, keepdim=True).sqrt()
        noise = torch.randn(weight.shape, generator=self.generator).to(weight.device)
        return {"weight": (weight + self.share * size * noise).to(weight.dtype)}

    def linear(self, x: Tensor, packed: Packed) -> Tensor:
        """x [T, in] -> [T, out]."""
        return functional.linear(x, packed["weight"])

    def dequant(self, packed: Packed) -> Tensor:
        """What is multiplied with."""
        return packed["weight"].float()


def compare_stored(dequant: Tensor, weight: Tensor, quality_class: str) -> Finding | None:
    """None where `dequant` [outputs, inputs] stands for `weight` as closely as the class must, else what is wrong."""
    wanted = weight.float()
    allowed = STORED[quality_class]
    error = (dequant - wanted).abs()
    norm = float(torch.linalg.vector_norm(wanted))
    relative = float(torch.linalg.vector_norm(error)) / max(norm, 1e-30)
    if relative <= allowed:
        inputs = wanted.shape[1]
        padding = (0, -inputs % GROUP)
        groups = functional.pad(error, padding).view(len(error), -1, GROUP).amax(-1)
        largest = functional.pad(wanted.abs(), padding).view(len(error), -1, GROUP).amax(-1)
        typical = norm / wanted.numel() ** 0.5
        over = groups > allowed * largest.clamp(min=typical)
        if not bool(over.any()):
            return None
        row, group = (int(i) for i in over.nonzero()[0])
        column = group * GROUP + int(error[row, group * GROUP : (group + 1) * GROUP].argmax())
        sentence = (
            f"dequant(pack(weight)) is wrong in {int(over.sum())} groups of {GROUP}: in row {row}, column {column} it is "
            f"{float(dequant[row, column]):.6g}, the weight {float(wanted[row, column]):.6g}; class {quality_class} allows "
            f"{allowed:.2g} of the group's largest magnitude."
        )
    else:
        flat = int((error > allowed * wanted.abs().amax()).flatten().to(torch.uint8).argmax())
        row, column = divmod(flat, wanted.shape[1])
        # Written so that NaN, which is not below any bound, ends here with its own name.
        what = f"{relative:.2%}" if relative == relative else "NaN"
        if what == "NaN":
            row, column = divmod(int(torch.isnan(error).flatten().to(torch.uint8).argmax()), wanted.shape[1])
        sentence = (
            f"dequant(pack(weight)) is off by {what} of the weight; class {quality_class} allows {allowed:.2%}. In row "
            f"{row}, column {column} it is {float(dequant[row, column]):.6g}, the weight {float(wanted[row, column]):.6g}."
            f"{diagnosis(dequant, wanted)}"
        )
    return Finding(sentence, "dequant", (row, column), float(wanted[row, column]), float(dequant[row, column]))


def parts_of(number: int, place: int, held: HeldSet, other: HeldSet, runner: Runner) -> dict[str, Tensor]:
    """What `QuantizationKind.parts` returns for one weight, whose counterpart is at `place` in `other`."""
    packed = {f"{number}/{name}": tensor for name, tensor in stored_under(f"{number}/", held).items()}
    others = {f"{number}/{name}": tensor for name, tensor in stored_under(f"{place}/", other).items()}
    specs, wanted = ({name: TensorSpec.of(t) for name, t in some.items()} for some in (others, packed))
    if specs != wanted:
        raise CallFailed("pack gave tensors of other names, shapes or dtypes for another weight of the same shape.")
    dequant, changed = held["dequant"].tensor[number], other["dequant"].tensor[place]
    rows = (dequant != changed).any(1).nonzero().flatten()
    found = {f"{number}:rows": rows, f"{number}:dequant": changed[rows].clone()}
    part_of_row = torch.zeros(len(dequant), dtype=torch.int64, device=rows.device)
    part_of_row[rows] = torch.arange(len(rows), device=rows.device)
    separate = True
    changes, most = 0, dequant.numel() * held["weight"].tensor.element_size()
    for name, tensor in packed.items():
        at = (bits(tensor) != bits(others[name])).flatten().nonzero().flatten()
        changes += len(at)
        # Places are kept, at 17 bytes and more for each: as many as a weight has bytes are enough, whatever is stored how.
        if changes > most:
            raise CallFailed(
                f"Of two weights that differ in a few elements, pack gave tensors that differ in {changes:,} or more, and a weight has {most:,} "
                "bytes. What is stored must follow from the weight, and hold nothing else."
            )
        if not len(at):
            continue
        lines = line_of(at, tensor.shape, rows, len(dequant))
        separate &= lines is not None
        found |= {
            f"{name}:at": at,
            f"{name}:to": others[name].flatten()[at],
            f"{name}:part": torch.zeros_like(at) if lines is None else part_of_row[lines],
        }
    if separate and len(rows) > 1:
        # Half of the rows changed, the others not: what is stored of a row must not depend on others.
        half = torch.arange(len(rows), device=rows.device) % 2 == 0
        wanted_half = dequant.clone()
        wanted_half[rows[half]] = changed[rows[half]]
        # The runner holds the other weight: rewriting what stands there means putting back the rows that are not chosen.
        rewrites = {}
        for name in packed:
            if f"{name}:at" in found:
                back = ~half[found[f"{name}:part"]]
                at = found[f"{name}:at"][back]
                rewrites[f"{place}/{name.removeprefix(f'{number}/')}"] = (at, packed[name].flatten()[at])
        spec = TensorSpec(tuple(dequant.shape), "float32")
        call = Call("dequant", {"of": f"{place}/"}, {}, {"weight": spec}, rewrites=rewrites)
        separate = torch.equal(runner.run(call)["weight"].to(dequant.device), wanted_half)
    if not separate:
        for name in packed:
            if f"{name}:at" in found:
                found[f"{name}:part"] = torch.zeros_like(found[f"{name}:at"])
        found[f"{number}:whole"] = torch.ones(1)
    return found


def stored_under(prefix: str, held: HeldSet) -> Packed:
    """The packed tensors of one weight, without the prefix of their names."""
    return packed_of({name: item.tensor for name, item in held.items() if item.access == "read"}, prefix)


def line_of(at: Tensor, shape: torch.Size, rows: Tensor, outputs: int) -> Tensor | None:
    """For each flat place in a tensor, the row of the weight that it belongs to: its index in the first dimension that has as many entries
    as the weight has rows and in which only `rows` appear; None where there is none.
    """
    stride = 1
    strides = []
    for size in reversed(shape):
        strides.append(stride)
        stride *= size
    for size, stride in zip(shape, reversed(strides), strict=True):
        if size == outputs:
            lines = at // stride % size
            if bool(torch.isin(lines, rows).all()):
                return lines
    return None


def drawn_parts(number: int, held: HeldSet, source: Source) -> tuple[Tensor, Rewrites]:
    """Which of the rows that may change do in one call, bool[n], and the rewrites for it."""
    rows = held[f"{number}:rows"].tensor
    whole = f"{number}:whole" in held
    count = 1 if whole else len(rows)
    share = 0.5 if whole else min(0.5, CHANGED / max(1, count))
    chosen = (torch.rand(count, generator=source.generator()) < share).to(rows.device)
    rewrites: Rewrites = {}
    for name, item in held.items():
        if name.startswith(f"{number}/") and name.endswith(":part"):
            packed = name.removesuffix(":part")
            at, to = held[f"{packed}:at"].tensor, held[f"{packed}:to"].tensor
            # All of it may be all that is stored: then nothing is copied.
            if not whole:
                these = chosen[item.tensor]
                rewrites[packed] = (at[these], to[these])
            elif bool(chosen):
                rewrites[packed] = (at, to)
    return chosen.expand(len(rows)), rewrites


def linear_call(case: Case, x: Tensor, bounds: Tensor | None = None) -> Call:
    """The call for x [weights * T, inputs] over the packed weights 0/..., 1/..., ..., as often as the case has rounds."""
    spec = TensorSpec((x.shape[0] * int(case["rounds"]), int(case["outputs"])), TensorSpec.of(x).dtype)
    params: dict[str, Scalar] = {"of": "", "weights": case["weights"], "rounds": case["rounds"]}
    inputs = {"x": x} if bounds is None else {"x": x, "bounds": bounds}
    return Call("linear", params, inputs, {"y": spec})


def windows(outputs: int, inputs: int) -> int:
    """Over how many windows of what a product gave the next one's input is taken, so that all of it counts."""
    return max(1, -(-outputs // inputs))


def following(given: Tensor, bounds: Tensor | None, number: int, rows: int, inputs: int) -> Tensor:
    """What the next round's product with a weight takes, [rows, inputs], from what this round's gave, [rows, outputs].

    All of that counts, and not linearly: whoever multiplies does not know what to multiply next before it is done, and there is no smaller matrix
    that several rounds are products with. Each value is the root of the squares in as many windows over what was given; where that is too little, it
    is taken as often as is needed, each time no lower than `bounds[number]`.
    """
    wanted = rows * inputs
    flat = given.contiguous().view(-1)
    if bounds is not None:
        return torch.maximum(flat, bounds[number]).view(-1)[:wanted].view(rows, inputs)
    count = windows(len(flat), wanted)
    step = (len(flat) - wanted) // max(1, count - 1)
    taken: Tensor = torch.linalg.vector_norm(flat.as_strided((count, wanted), (step, 1)), dim=0)
    return taken.view(rows, inputs)


def taken_by(number: int, parts: Sequence[Tensor], given: Sequence[Tensor], bounds: Tensor | None) -> Tensor:
    """What product `number` of several rounds takes. parts: what those of the first round came with; given: what all before it gave.

    What the product with the same weight gave in the round before, with the signs of what the product just before it gave: so those of one round follow each
    other, too, and a guess of one weight's rounds is not mended by going over it.
    """
    count = len(parts)
    if number < count:
        return put_signs(parts[number].clone(), given[number - 1]) if number else parts[number]
    return put_signs(following(given[number - count], bounds, number - count, *parts[0].shape), given[number - 1])


def lookup_call(case: Case, ids: Tensor) -> Call:
    """The call for the rows `ids` of the packed weight 0/..."""
    spec = TensorSpec((len(ids), int(case["inputs"])), case.dtype)
    return Call("embedding", {"of": "0/", "dtype": case.dtype}, {"ids": ids}, {"y": spec})


class QuantizationDriver:
    """Runs in the host.

    into: where a host wants outputs, by name. Of many products it then takes the memory of one or two, and what a module is left of an accelerator's
    memory is not what base's own outputs took.
    """

    def __init__(self, quantization: Any) -> None:
        self.quantization = quantization
        self.into: Mapping[str, Tensor] = {}

    def prepare(self, operation: str, params: Mapping[str, Scalar], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """pack: the tensors of each weight in `weight` [weights, outputs, inputs], named NUMBER/NAME."""
        if operation != "pack":
            raise ValueError(f"quantization has no preparation {operation!r}.")
        results: dict[str, Tensor] = {}
        for number, weight in enumerate(inputs["weight"]):
            packed = self.quantization.pack(weight)
            if not isinstance(packed, dict) or not packed:
                raise TypeError(f"pack must return a dict of tensors, not {type(packed).__name__}.")
            for name, value in packed.items():
                if not isinstance(name, str) or not isinstance(value, Tensor) or "/" in name:
                    raise TypeError(f"pack must return tensors under names without '/'; {name!r} is not.")
                results[f"{number}/{name}"] = value
        return results

    def run(
        self, operation: str, params: Mapping[str, Scalar], inputs: Mapping[str, Tensor], held: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """linear, embedding and dequant of the packed weight whose tensors' names begin with `of`."""
        of = str(params["of"])
        if operation == "linear":
            count, rounds = int(params["weights"] or 1), int(params.get("rounds") or 1)
            if count * rounds == 1:
                return {"y": self.quantization.linear(inputs["x"], packed_of(held, of or "0/"))}
            packed = [packed_of(held, f"{number}/") for number in range(count)]
            parts = inputs["x"].chunk(count)
            given: list[Tensor] = []
            target = self.into.get("y")
            places = None if target is None else target.chunk(count * rounds)
            last: list[Earlier] = []
            for number in range(count * rounds):
                x = parts[number] if rounds == 1 else taken_by(number, parts, given, inputs.get("bounds"))
                product = self.quantization.linear(x, packed[number % count])
                given.append(
                    product if places is None else put("What `linear` returned", product, places[number], last)
                )
                del last[:-1]
            return {"y": torch.cat(given) if target is None else target}
        if operation == "embedding":
            return {"y": self.quantization.embedding(inputs["ids"], packed_of(held, of))}
        if operation == "dequant":
            return {"weight": self.quantization.dequant(packed_of(held, of))}
        raise ValueError(f"quantization has no operation {operation!r}.")


def packed_of(held: Mapping[str, Tensor], prefix: str) -> Packed:
    """The packed tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in held.items() if name.startswith(prefix)}


class RemotePacked(dict[str, Tensor]):
    """A packed weight that the host holds under `of`."""

    def __init__(self, tensors: Packed, of: str, shape: tuple[int, int], dtype: str) -> None:
        super().__init__(tensors)
        self.of = of
        self.shape = shape
        self.dtype = dtype


class RemoteQuantization:
    """A `Quantization` in the judge's engine."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.count = 0
        self.packed: list[tuple[Tensor, RemotePacked]] = []

    def pack(self, weight: Tensor) -> RemotePacked:
        """Packs in the host and shares the result with it. Raises CallFailed."""
        of = f"w{self.count}/"
        self.count += 1
        results = self.runner.prepare(Preparation("pack", {}, {"weight": weight.detach()[None].contiguous()}))
        # What counts as 16 bits has no more than these.
        kept = {n: v.bfloat16().float() if follows_dtype(v, weight) else v for n, v in results.items()}
        held = {of + name.removeprefix("0/"): Held(value, "read") for name, value in kept.items()}
        views = self.runner.hold(held)
        tensors = {name.removeprefix(of): view for name, view in views.items()}
        packed = RemotePacked(tensors, of, (weight.shape[0], weight.shape[1]), TensorSpec.of(weight).dtype)
        self.packed.append((weight.detach(), packed))
        return packed

    def linear(self, x: Tensor, packed: RemotePacked) -> Tensor:
        """Multiplies in the host. Raises CallFailed."""
        spec = TensorSpec((x.shape[0], packed.shape[0]), TensorSpec.of(x).dtype)
        params: dict[str, Scalar] = {"of": packed.of, "weights": 1}
        return self.runner.run(Call("linear", params, {"x": x.contiguous()}, {"y": spec}))["y"]

    def dequant(self, packed: RemotePacked) -> Tensor:
        """The stored weight, float32. Raises CallFailed."""
        spec = TensorSpec(packed.shape, "float32")
        return self.runner.run(Call("dequant", {"of": packed.of}, {}, {"weight": spec}))["weight"]


class RemoteEmbeddingQuantization(RemoteQuantization):
    """One whose implementation also offers `embedding`."""

    def embedding(self, ids: Tensor, packed: RemotePacked) -> Tensor:
        """Looks rows up in the host. Raises CallFailed."""
        spec = TensorSpec((len(ids), packed.shape[1]), packed.dtype)
        params: dict[str, Scalar] = {"of": packed.of, "dtype": packed.dtype}
        return self.runner.run(Call("embedding", params, {"ids": ids.contiguous()}, {"y": spec}))["y"]


QUANTIZATION = QuantizationKind()
