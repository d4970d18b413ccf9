"""How attention is judged: paged steps against the definition, and what must hold of every implementation."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from engine.reference.attention import attention as reference
from engine.slots.attention import AttentionShape, Phase, StepMeta, standard_kv, step_meta
from engine.slots.caps import Caps, dtypes_for, why_not
from engine.slots.compare import COARSE, Heads, compare_output, farthest, same_bits, stale
from engine.slots.drawing import DISTRIBUTIONS, draw_tensor, jitter, permutation
from engine.slots.header import Header
from engine.slots.kind import (
    Call,
    Case,
    Driver,
    Environment,
    Finding,
    Held,
    HeldSet,
    Preparation,
    Property,
    Runner,
    Scalar,
    SlotKind,
    Suite,
    TensorSpec,
    Work,
)
from engine.slots.source import Source
from engine.slots.steps import follows, must_hold_all, signed_by, with_all_taken
from engine.workloads.attention import CPU, CUDA, UNIT, AttentionWorkload, format_sequences, parse_sequences

STALE_SCALE = 20.0
"""Size of what lies in slots that nobody may read: a leak of one such value is far above any tolerance."""

OTHER_ORDERS, TIMES = 7, 4.0
"""In which scores are summed by the plain path in float32, and what its largest error is multiplied by. In coarser dtypes an implementation rounds less than
the plain path; in float32 its error is another draw of the same size, and where one score's rounding decides a row, three in ten draws are twice another."""

REWRITTEN_AMONG = 1024
"""Tokens of a history for each that is another in a timed call."""

PROBES = 128
"""Elements of the cache that are looked at when a step is acknowledged: whoever writes its new tokens later is seen at once."""

LOOKED_AT = 3
"""Layers of a timed call whose outputs are compared on an accelerator, where the definition takes far longer than what it judges. Which
ones is secret, and others in each call; the caches of all are compared."""

RUN_BYTES = 32
"""What of an earlier token is another one's while a call is timed: so many bytes of one head's key or value. A look at a part of each token's finds it seldom."""

META_TENSORS = ("cu_q", "kv_len", "block_table", "slot_map", "positions")


def shape_of(params: Mapping[str, Scalar]) -> AttentionShape:
    """The layer shape that a case's or a call's numbers stand for."""
    window = params["window"]
    return AttentionShape(
        q_heads=int(params["q_heads"] or 0),
        kv_heads=int(params["kv_heads"] or 0),
        head_dim=int(params["head_dim"] or 0),
        scale=float(params["scale"] or 0.0),
        window=int(window) if window else None,
    )


def shape_params(shape: AttentionShape) -> dict[str, Scalar]:
    """The inverse of `shape_of`."""
    return {
        "q_heads": shape.q_heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "scale": shape.scale,
        "window": shape.window,
    }


def meta_params(meta: StepMeta) -> dict[str, Scalar]:
    """The numbers of a step that are no tensors."""
    return {"phase": meta.phase, "max_q": meta.max_q, "max_kv": meta.max_kv, "block_size": meta.block_size}


def meta_inputs(meta: StepMeta) -> dict[str, Tensor]:
    """The tensors of a step, by name."""
    return {name: getattr(meta, name) for name in META_TENSORS}


def meta_of(params: Mapping[str, Scalar], inputs: Mapping[str, Tensor]) -> StepMeta:
    """The step that a call describes."""
    phase: Phase = "mixed"
    if params["phase"] == "prefill":
        phase = "prefill"
    elif params["phase"] == "decode":
        phase = "decode"
    return StepMeta(
        phase=phase,
        max_q=int(params["max_q"] or 0),
        max_kv=int(params["max_kv"] or 0),
        block_size=int(params["block_size"] or 0),
        **{name: inputs[name] for name in META_TENSORS},
    )


class AttentionKind(SlotKind):
    """Cases are steps over a pool of pages.

    Each sequence's history lies on pages drawn anew for every call, so that nothing gathered in one call serves the
    next, and while a call is timed some earlier tokens hold other keys and values. New tokens go to slots
    that no call reads before it has written them; these hold large stale values.
    """

    name = "attention"
    title = "Attention"
    default = "sdpa"

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
        workloads: Sequence[AttentionWorkload] = UNIT
        if suite == "performance":
            workloads = CUDA if environment.device == "cuda" else CPU
            preferred = "bfloat16" if environment.device == "cuda" else "float32"
            dtypes = [preferred] if preferred in dtypes else dtypes[:1]
        return [
            self.case(
                workload,
                dtype,
                environment.device,
                suite,
                caps,
                sparse=header.quality_class == "S",
                tight=header.quality_class == "E" and dtype == "float32",
            )
            for workload in workloads
            if self.supports(caps, workload)
            for dtype in dtypes
        ]

    @staticmethod
    def supports(caps: Caps, workload: AttentionWorkload) -> bool:
        """Whether the limits include this workload."""
        sequences = parse_sequences(workload.sequences)
        decode = all(new == 1 for new, _ in sequences)
        whole = all(new > 1 or new == total for new, total in sequences)
        phase = "decode" if decode else "prefill" if whole else "mixed"
        return (
            (not caps.head_dims or workload.head_dim in caps.head_dims)
            and (not caps.max_group or workload.q_heads // workload.kv_heads <= caps.max_group)
            and (caps.window or not workload.window)
            and phase in caps.phases
        )

    @staticmethod
    def case(
        workload: AttentionWorkload,
        dtype: str,
        device: str,
        suite: Suite,
        caps: Caps,
        sparse: bool = False,
        tight: bool = True,
    ) -> Case:
        """The case of a workload in a dtype on a device."""
        shape = AttentionShape(
            workload.q_heads, workload.kv_heads, workload.head_dim, workload.head_dim**-0.5, workload.window or None
        )
        params: dict[str, Scalar] = {
            **shape_params(shape),
            "block_size": workload.block_size,
            "sequences": workload.sequences,
            "layers": workload.layers,
            "values": "normal",
            "spare": 1,
            "suite": suite,
            "device": device,
            "kv": caps.kv,
            "sparse": sparse,
            "tight": tight,
        }
        name = f"{workload.name}-{dtype}" if suite == "unit" else workload.name
        return Case(name, dtype, params)

    def vary(self, case: Case, source: Source) -> Case:
        """Other lengths with about the same sum, another distribution, other spare pages."""
        sequences = parse_sequences(case["sequences"])
        histories = [total - new for new, total in sequences]
        news = [new for new, _ in sequences]
        if case["suite"] == "performance":
            histories = jitter(source, histories, 0.25, least=0)
            long = jitter(source, [new if new > 1 else 0 for new in news], 0.25, least=2)
            news = [drawn or 1 for drawn in long]
        else:
            histories = [max(0, h + source.choice((0, 0, -1, 1))) if h > 1 else h for h in histories]
            news = [max(2, n + source.choice((0, 0, -1, 1))) if n > 2 else n for n in news]
        values = source.choice(DISTRIBUTIONS if case["suite"] == "unit" else ("normal", "long-tailed"))
        varied = format_sequences([(n, n + h) for n, h in zip(news, histories, strict=True)])
        spare = source.integer(1, 4)
        return Case(case.name, case.dtype, {**case.params, "sequences": varied, "values": values, "spare": spare})

    def held(self, case: Case, source: Source) -> HeldSet:
        """kv: the cache [layers, 2, blocks, block_size, kv_heads, head_dim] (in an own layout, what `preparation` gives).

        Private: origin, the cache as it was; free, pages for histories; tails, int64[B, pages] for new tokens; scratch,
        int64[slots], the slots that calls may write.
        """
        size = int(case["block_size"])
        sequences = parse_sequences(case["sequences"])
        full = [(total - new) // size for new, total in sequences]
        tails = [-(-total // size) - f for (_, total), f in zip(sequences, full, strict=True)]
        free = sum(full) + int(case["spare"])
        blocks = free + sum(tails)
        pages = torch.tensor(permutation(source, blocks))
        table = torch.zeros(len(sequences), max(tails), dtype=torch.int64)
        scratch = torch.zeros(blocks, size, dtype=torch.bool)
        at = free
        for index, ((new, total), count) in enumerate(zip(sequences, tails, strict=True)):
            table[index, :count] = pages[at : at + count]
            at += count
            scratch[table[index, 0], (total - new) % size :] = True
            scratch[table[index, 1:count]] = True
        shape = shape_of(case.params)
        spec = standard_kv(shape, blocks, size, case.dtype)
        origin = draw_tensor(
            source,
            (int(case["layers"]) * 2 * blocks * size, shape.kv_heads, shape.head_dim),
            spec.torch_dtype,
            case["device"],
            "normal",
        ).view(int(case["layers"]), *spec.shape)
        scratch = scratch.to(origin.device)
        origin[:, :, scratch] *= STALE_SCALE
        held = {
            "origin": Held(origin, "private"),
            "free": Held(pages[:free], "private"),
            "tails": Held(table, "private"),
            "scratch": Held(scratch.flatten().nonzero().flatten(), "private"),
        }
        if case["kv"] == "standard":
            # Several gigabytes on an accelerator, of which every host gets a copy.
            shared = case["suite"] == "performance" and case["device"] == "cuda"
            held["kv"] = Held(origin if shared else origin.clone(), "write")
        return held

    def preparation(self, case: Case, held: HeldSet) -> Preparation | None:
        """For a cache in an own layout: the judge's cache, written by the implementation."""
        if case["kv"] == "standard":
            return None
        return fill(case, held["origin"].tensor)

    def draw(self, case: Case, held: HeldSet, source: Source) -> Call:
        """A step whose sequences come in a new order, with their histories on newly drawn pages."""
        size = int(case["block_size"])
        sequences = parse_sequences(case["sequences"])
        tails = held["tails"].tensor
        free = held["free"].tensor[permutation(source, len(held["free"].tensor))]
        width = max(-(-total // size) for _, total in sequences)
        order = permutation(source, len(sequences))
        # What lies past a sequence's last page is unspecified: any page.
        table = free[torch.randint(len(free), (len(sequences), width), generator=source.generator())]
        at = 0
        for row, index in enumerate(order):
            new, total = sequences[index]
            full = (total - new) // size
            count = -(-total // size) - full
            table[row, :full] = free[at : at + full]
            table[row, full : full + count] = tails[index, :count]
            at += full
        news = [sequences[index][0] for index in order]
        totals = [sequences[index][1] for index in order]
        meta = step_meta(news, totals, table, size, case["device"])
        shape = shape_of(case.params)
        rows = sum(news) * int(case["layers"])
        dtype = TensorSpec((), case.dtype).torch_dtype

        def drawn(heads: int) -> Tensor:
            return draw_tensor(source, (rows, heads, shape.head_dim), dtype, case["device"], case["values"])

        call = step_call(case, meta, drawn(shape.q_heads), drawn(shape.kv_heads), drawn(shape.kv_heads))
        call.recorded = meta.phase == "decode" and case["device"] == "cuda"
        if call.check_state:
            call.probes = {"kv": probes(held["origin"].tensor, meta, source)}
            if case["suite"] == "performance":
                call.rewrites = {"kv": other_history(held["origin"].tensor, news, totals, table, shape, source)}
        call.looked_at = layers_to_look_at(case, source)
        call.params["follows"] = follows(case, "layers")
        return call

    def followed(self, call: Call, outputs: Mapping[str, Tensor]) -> Call:
        """q of each layer: of the later ones, with the signs of what the layer before gave."""
        return with_all_taken(call, "q", signed_by, outputs["out"], "layers")

    def expected(self, case: Case, held: HeldSet, call: Call) -> dict[str, Tensor]:
        """The definition, and the cache with the new tokens in their slots; NaN where calls may have written.

        Computed in float32, in the unit suite in float64 where the case itself is in float32: else the plain path would have no error
        of its own, and what is nearer to the truth than it would be taken for wrong.
        """
        must_hold_all(call.params)
        written = after_write(held["origin"].tensor, call, held["scratch"].tensor)
        layers = {"layers": torch.tensor(call.looked_at)} if call.looked_at else {}
        if case["sparse"]:
            # What is right depends on the pages that the implementation selects: `compare` computes it from these.
            meta = {name: call.inputs[name] for name in META_TENSORS}
            return {"q": call.inputs["q"], "written": written, **layers, **meta, **self.state(call, written)}
        finer = case["suite"] == "unit" and case.dtype == "float32"
        chosen = layers_of(written, call.looked_at)
        expected = {"out": self.attended(case, chosen, call, torch.float64 if finer else torch.float32).float()}
        if any(at.numel() for at, _ in call.rewrites.values()) and not case["tight"]:
            # What the bounds of coarser classes and dtypes would let through.
            unchanged = before_rewrites(held["origin"].tensor, call)
            expected["before"] = self.attended(case, unchanged, call, torch.float32)
        return {**expected, **layers, **self.state(call, written)}

    @staticmethod
    def state(call: Call, written: Tensor) -> dict[str, Tensor]:
        """The entry for the cache, where the call asks for it."""
        return {"state:kv": written} if "kv" in call.check_state else {}

    def plain(self, case: Case, held: HeldSet, call: Call) -> dict[str, Tensor]:
        """The definition with both products in the case's dtype; in float32 also with the channels of queries and keys in other orders."""
        dtype = TensorSpec((), case.dtype).torch_dtype
        written = after_write(held["origin"].tensor, call)
        found = {"out": self.attended(case, written, call, dtype)}
        if case.dtype != "float32":
            return found
        keys = written[:, 0].clone()
        for number in range(OTHER_ORDERS):
            generator = torch.Generator().manual_seed(number)
            order = torch.randperm(keys.shape[-1], generator=generator).to(keys.device)
            written[:, 0] = keys[..., order]
            shuffled = replace(call, inputs={**call.inputs, "q": call.inputs["q"][..., order]})
            found[f"out, order {number}"] = self.attended(case, written, shuffled, dtype)
        return found

    @staticmethod
    def attended(case: Case, written: Tensor | Sequence[Tensor], call: Call, dtype: torch.dtype) -> Tensor:
        """The reference for each layer that is looked at, one after the other: [layers * T, q_heads, head_dim]. written: their caches."""
        meta = meta_of(call.params, call.inputs)
        shape = shape_of(case.params)
        layers = layers_of(call.inputs["q"].chunk(int(case["layers"])), call.looked_at)
        return torch.cat([reference(q, kv, meta, shape, dtype) for q, kv in zip(layers, written, strict=True)])

    def compare(
        self,
        case: Case,
        header: Header,
        got: Mapping[str, Tensor],
        expected: Mapping[str, Tensor],
        plain: Mapping[str, Tensor] | None,
    ) -> Finding | None:
        """The output by class, for class S under the pages that were selected; the cache bit for bit."""
        if case["sparse"]:
            finding = compare_sparse(case, got, expected)
        elif "layers" in expected:
            finding = self.compare_some(case, header, got, expected)
        else:
            finding = self.compare_layers("out", case, header, got["out"], expected, plain)
        if finding is None and "state:kv" in expected:
            finding = same_bits(
                "kv",
                got["state:kv"],
                expected["state:kv"],
                "The KV cache is wrong after the step: the new tokens' slots must hold their keys and values bit for "
                "bit, and every other slot must stay as it was (index: layer, key or value, page, offset, head, channel).",
            )
        return finding

    def compare_some(
        self, case: Case, header: Header, got: Mapping[str, Tensor], expected: Mapping[str, Tensor]
    ) -> Finding | None:
        """The layers of the output that are looked at, one by one."""
        layers = expected["layers"].tolist()
        outputs = got["out"].chunk(int(case["layers"]))
        parts = {name: expected[name].chunk(len(layers)) for name in ("out", "before") if name in expected}
        for at, layer in enumerate(layers):
            part = {name: chunks[at] for name, chunks in parts.items()}
            finding = self.compare_layers(f"out of layer {layer}", case, header, outputs[layer], part, None)
            if finding is not None:
                return finding
        return None

    @staticmethod
    def compare_layers(
        name: str,
        case: Case,
        header: Header,
        got: Tensor,
        expected: Mapping[str, Tensor],
        plain: Mapping[str, Tensor] | None,
    ) -> Finding | None:
        """The output of one layer or of all, [rows, q_heads, head_dim]."""
        yardstick = None if plain is None else farthest(list(plain.values()), expected["out"])
        times = 2.0 if plain is None or len(plain) == 1 else TIMES
        finding = compare_output(
            name, got, expected["out"], yardstick, case.dtype, header.quality_class, "token", times
        )
        if finding is None and "before" in expected:
            # A head that attends to few tokens has large outputs, and errors in proportion.
            scale = expected["out"].square().mean(-1, keepdim=True).sqrt_()
            coarse = COARSE.get(header.quality_class)
            heads = Heads(int(case["kv_heads"]), 3 * coarse.frobenius if coarse else 0.0, coarse is not None)
            what = "an earlier token of each sequence"
            finding = stale(name, got, expected["out"], expected["before"], scale, what, heads)
        return finding

    def properties(self, header: Header, environment: Environment) -> Sequence[Property]:
        """Causality, windows, paging, batch order, agreement of decode with prefill, determinism, refusals, selection."""
        from engine.slots.kinds.attention_properties import attention_properties

        return attention_properties(self, header, environment)

    def work(self, case: Case, held: HeldSet, call: Call) -> Work:
        """Reading q and the visible keys and values once, writing the new ones and the output; two products."""
        shape = shape_of(case.params)
        width = TensorSpec((), case.dtype).torch_dtype.itemsize
        rows = keys = pairs = 0
        for new, total in parse_sequences(case["sequences"]):
            window = shape.window or total
            rows += new
            keys += min(total, window + new - 1)
            pairs += seen_by(total, window) - seen_by(total - new, window)
        layers = int(case["layers"])
        moved = rows * (2 * shape.q_heads + 4 * shape.kv_heads) + 2 * keys * shape.kv_heads
        return Work(layers * moved * shape.head_dim * width, layers * 4 * pairs * shape.q_heads * shape.head_dim)

    def proxy(self, runner: Runner, header: Header) -> Any:
        """A class to be used in place of the implementation's, whose instances forward to `runner`."""

        base = RemoteEvictingAttention if Caps.of(header).evict else RemoteAttention
        return type("Remote", (base,), {"channel": AttentionChannel(runner)})

    # -- the host's side --------------------------------------------------------------------------------------------

    def why_malformed(self, implementation: type[Any]) -> list[str]:
        """What the class lacks of the contract."""
        wanted = ("kv_spec", "plan", "write", "forward")
        return lacking(implementation, wanted, "attention", "Derive from StandardKV for all but forward.")

    def recordable(self, header: Header) -> bool:
        """Where the header says so: others may read lengths back to the host in every step."""
        return Caps.of(header).cuda_graph

    def driver(self, implementation: type[Any]) -> Driver:
        """Makes one instance for each shape that calls name."""
        return AttentionDriver(implementation)


def lacking(implementation: Any, methods: Sequence[str], kind: str, advice: str = "") -> list[str]:
    """Sentences for methods that a class lacks."""
    if not isinstance(implementation, type):
        return [f"@register must be put on a class, not on {type(implementation).__name__}."]
    missing = [name for name in methods if not callable(getattr(implementation, name, None))]
    if not missing:
        return []
    return [f"The class {implementation.__name__} lacks {', '.join(missing)} of the {kind} contract. {advice}".strip()]


def compare_sparse(case: Case, got: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Finding | None:
    """The output of a sparse step against the definition over the pages that it says it read."""
    layers = int(case["layers"])
    looked_at = tuple(given["layers"].tolist()) if "layers" in given else ()
    meta = StepMeta(
        phase="mixed", max_q=0, max_kv=0, block_size=int(case["block_size"]), **{n: given[n] for n in META_TENSORS}
    )
    mask = got["mask"]
    pages = torch.arange(mask.shape[-1], device=mask.device)
    readable = pages <= (meta.positions // meta.block_size).repeat(layers)[:, None]
    blind = ~(mask & readable[:, None]).any(-1)
    if bool(blind.any()):
        row, head = (int(i) for i in blind.nonzero()[0])
        return Finding(
            f"select leaves query head {head} of token {row}, at position "
            f"{int(meta.positions.repeat(layers)[row])} of its sequence, without any page that it may read.",
            "mask",
            (row, head),
        )
    shape = shape_of(case.params)
    everything = given["q"].chunk(layers), given["written"], mask.chunk(layers), got["out"].chunk(layers)
    parts = zip(*(layers_of(each, looked_at) for each in everything), strict=True)
    outputs, wanted, plain = [], [], []
    for q, kv, chosen, out in parts:
        outputs.append(out)
        wanted.append(reference(q, kv, meta, shape, block_mask=chosen))
        # Of long histories of loud values, bfloat16 itself is off by more than a fixed bound would let pass. Float32 is not, and has as many errors as orders of a sum.
        if case["suite"] == "unit" and case.dtype != "float32":
            plain.append(reference(q, kv, meta, shape, q.dtype, chosen))
    what = "out" if not looked_at else f"out of the layers {', '.join(map(str, looked_at))}"
    yardstick = torch.cat(plain) if plain else None
    finding = compare_output(what, torch.cat(outputs), torch.cat(wanted), yardstick, case.dtype, "E", "token")
    if finding is None:
        return None
    return Finding(
        f"forward is not attention over the pages that select names. {finding.sentence}",
        "out",
        finding.index,
        finding.expected,
        finding.got,
        finding.figures,
    )


def layers_to_look_at(case: Case, source: Source) -> tuple[int, ...]:
    """Layers of a call whose outputs are compared; none named stands for all."""
    layers = int(case["layers"])
    if case["suite"] != "performance" or case["device"] == "cpu" or layers <= LOOKED_AT:
        return ()
    return tuple(sorted(permutation(source.child("layers"), layers)[:LOOKED_AT]))


def seen_by(tokens: int, window: int) -> int:
    """Keys that the first `tokens` of a sequence see together."""
    whole = min(tokens, window)
    return whole * (whole + 1) // 2 + (tokens - whole) * window


def layers_of(each: Any, looked_at: Sequence[int]) -> Any:
    """Those of `each` that are looked at; all where none is named."""
    return [each[layer] for layer in looked_at] if looked_at else each


def step_call(case: Case, meta: StepMeta, q: Tensor, k: Tensor, v: Tensor) -> Call:
    """The call of a step over the held cache `kv`; q, k and v have layers * T rows."""
    shape = shape_of(case.params)
    outputs = {"out": TensorSpec((q.shape[0], shape.q_heads, shape.head_dim), case.dtype)}
    if case["sparse"]:
        outputs["mask"] = TensorSpec((q.shape[0], shape.q_heads, meta.block_table.shape[1]), "bool")
    return Call(
        operation="step",
        params={
            **shape_params(shape),
            **meta_params(meta),
            "layers": case["layers"],
            "kv": "kv",
            "select": case["sparse"],
        },
        inputs={**meta_inputs(meta), "q": q, "k": k, "v": v},
        outputs=outputs,
        check_state=("kv",) if case["kv"] == "standard" else (),
    )


def fill(case: Case, origin: Tensor) -> Preparation:
    """The preparation that gives `kv`, a cache in an own layout with the content of `origin` (standard, with layers)."""
    shape = shape_of(case.params)
    layers, _, blocks, size, _, _ = origin.shape
    params: dict[str, Scalar] = {
        **shape_params(shape),
        "blocks": blocks,
        "block_size": size,
        "layers": layers,
        "dtype": case.dtype,
    }
    content = {
        "k": origin[:, 0].reshape(-1, shape.kv_heads, shape.head_dim),
        "v": origin[:, 1].reshape(-1, shape.kv_heads, shape.head_dim),
    }
    return Preparation("fill", params, content, access="write")


def probes(origin: Tensor, meta: StepMeta, source: Source) -> Tensor:
    """int64[PROBES]: flat places in a cache like `origin` [layers, 2, blocks, block_size, heads, channels], of elements that the step writes."""
    layers, _, blocks, size, heads, channels = origin.shape
    generator = source.generator()

    def drawn(below: int) -> Tensor:
        return torch.randint(below, (PROBES,), generator=generator)

    slots = meta.slot_map.cpu()[drawn(len(meta.slot_map))]
    return (drawn(2 * layers) * blocks * size + slots) * heads * channels + drawn(heads * channels)


def other_history(
    origin: Tensor, news: Sequence[int], totals: Sequence[int], table: Tensor, shape: AttentionShape, source: Source
) -> tuple[Tensor, Tensor]:
    """Rewrites of a cache [layers, 2, blocks, block_size, heads, channels]: in every layer, a run of channels of one head's key or value of
    one earlier token in every `REWRITTEN_AMONG` of each sequence that has any, drawn anew.

    They are in sight of all new ones. Of a long history one alone would change an output by less than coarse classes round it.
    """
    layers, _, blocks, size, heads, channels = origin.shape
    generator = source.generator()
    slots = []
    for row, (new, total) in enumerate(zip(news, totals, strict=True)):
        # The last token sees the least of what is long past.
        first = 0 if shape.window is None else max(0, total - shape.window)
        last = total - new
        if first < last:
            parts = max(1, (last - first) // REWRITTEN_AMONG)
            bounds = [first + (last - first) * part // parts for part in range(parts + 1)]
            for least, beyond in pairwise(bounds):
                position = source.integer(least, beyond - 1)
                slots.append(int(table[row, position // size]) * size + position % size)
    run = min(channels, RUN_BYTES // origin.element_size())

    def drawn(below: int) -> Tensor:
        return torch.randint(below, (layers, len(slots)), generator=generator)

    plane = torch.arange(layers)[:, None] * 2 + drawn(2)
    place = (plane * blocks * size + torch.tensor(slots, dtype=torch.int64)) * heads + drawn(heads)
    at = (place * channels + drawn(channels // run) * run)[..., None] + torch.arange(run)
    values = torch.randn(at.shape, generator=generator)
    return at.flatten().to(origin.device), values.flatten().to(origin.device, origin.dtype)


def after_write(origin: Tensor, call: Call, scratch: Tensor | None = None) -> Tensor:
    """A copy of the standard cache [layers, 2, ...] with what the call rewrites, and its keys and values in their slots.

    Other slots of `scratch` become NaN: earlier calls may have left anything there, and nobody may read it.
    """
    written = origin.clone()
    for at, values in call.rewrites.values():
        written.view(-1)[at] = values
    if scratch is not None:
        written.flatten(2, 3).index_fill_(2, scratch, float("nan"))
    for layer, kv in enumerate(written):
        put_new(kv, layer, call)
    return written


def before_rewrites(origin: Tensor, call: Call) -> list[Tensor]:
    """Of each layer that is looked at, a copy of its cache with the call's keys and values in their slots and nothing rewritten."""
    copies = {layer: origin[layer].clone() for layer in call.looked_at or range(len(origin))}
    for layer, kv in copies.items():
        put_new(kv, layer, call)
    return list(copies.values())


def put_new(kv: Tensor, layer: int, call: Call) -> None:
    """Writes a call's keys and values of one layer to their slots of its cache [2, pages, page, ...]."""
    slots = kv.flatten(1, 2)
    tokens = len(call.inputs["slot_map"])
    for at, name in enumerate("kv"):
        slots[at, call.inputs["slot_map"]] = call.inputs[name][layer * tokens : (layer + 1) * tokens]


class AttentionDriver:
    """Runs in the host: turns the judge's operations into calls on instances of the class."""

    def __init__(self, implementation: type[Any]) -> None:
        self.implementation = implementation
        self.instances: dict[AttentionShape, Any] = {}
        self.metas: dict[AttentionShape, StepMeta] = {}

    def instance(self, shape: AttentionShape) -> Any:
        """The instance for a shape, made where it is the first of that shape."""
        if shape not in self.instances:
            self.instances[shape] = self.implementation(shape)
        return self.instances[shape]

    def prepare(self, operation: str, params: Mapping[str, Scalar], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """fill: {"kv": the cache in the implementation's layout, stacked over layers}."""
        if operation != "fill":
            raise ValueError(f"attention has no preparation {operation!r}.")
        shape = shape_of(params)
        attention = self.instance(shape)
        blocks, size, layers = int(params["blocks"] or 0), int(params["block_size"] or 0), int(params["layers"] or 1)
        spec = attention.kv_spec(blocks, size, str(params["dtype"]))
        device = inputs["k"].device
        kv = torch.zeros((layers, *spec.shape), dtype=spec.torch_dtype, device=device)
        table = torch.arange(blocks)[:, None]
        meta = step_meta([size] * blocks, [size] * blocks, table, size, device)
        for layer, (k, v) in enumerate(zip(inputs["k"].chunk(layers), inputs["v"].chunk(layers), strict=True)):
            attention.write(k, v, kv[layer], meta)
        return {"kv": kv}

    def run(
        self, operation: str, params: Mapping[str, Scalar], inputs: Mapping[str, Tensor], held: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """step, layer, backward and evict."""
        shape = shape_of(params)
        attention = self.instance(shape)
        kv = held[str(params["kv"])]
        if operation == "layer":
            return self.layer(attention, shape, params, inputs, kv)
        meta = meta_of(params, inputs)
        if operation == "step":
            return self.step(attention, meta, params, inputs, kv)
        if operation == "backward":
            return self.backward(attention, meta, inputs, kv[0])
        attention.plan(meta)
        if operation == "evict":
            free = torch.zeros(int(params["blocks"] or 0), dtype=torch.bool, device=kv.device)
            free[attention.evict(kv, meta).long()] = True
            return {"free": free}
        raise ValueError(f"attention has no operation {operation!r}.")

    @staticmethod
    def step(
        attention: Any, meta: StepMeta, params: Mapping[str, Scalar], inputs: Mapping[str, Tensor], kv: Tensor
    ) -> dict[str, Tensor]:
        """One plan, then write and forward for each layer: the unit of what is timed. With `select`, also the pages read."""
        layers, select = int(params["layers"] or 1), bool(params.get("select"))
        attention.plan(meta)
        outputs: list[Tensor] = []
        masks = []
        rows = (inputs[name].chunk(layers) for name in ("q", "k", "v"))
        for fresh, k, v, cache in zip(*rows, kv.unbind(), strict=True):
            q = signed_by(fresh, outputs[-1]) if outputs and params.get("follows") else fresh
            attention.write(k, v, cache, meta)
            outputs.append(attention.forward(q, k, v, cache, meta))
            if select:
                masks.append(attention.select(q, k, cache, meta))
        results = {"out": outputs[0] if layers == 1 else torch.cat(outputs)}
        if select:
            results["mask"] = masks[0] if layers == 1 else torch.cat(masks)
        return results

    @staticmethod
    def backward(attention: Any, meta: StepMeta, inputs: Mapping[str, Tensor], kv: Tensor) -> dict[str, Tensor]:
        """Gradients of sum(out * weight) by the new q, k and v."""
        with torch.inference_mode(False), torch.enable_grad():
            q, k, v = (inputs[name].clone().requires_grad_() for name in ("q", "k", "v"))
            # The held cache is an inference tensor, or the judge's; a copy can take part in a graph.
            cache = kv.clone()
            step = meta_of(
                {"phase": meta.phase, "max_q": meta.max_q, "max_kv": meta.max_kv, "block_size": meta.block_size},
                {name: tensor.clone() for name, tensor in meta_inputs(meta).items()},
            )
            attention.plan(step)
            attention.write(k, v, cache, step)
            out = attention.forward(q, k, v, cache, step)
            dq, dk, dv = torch.autograd.grad((out * inputs["weight"].clone()).sum(), (q, k, v))
        return {"dq": dq, "dk": dk, "dv": dv}

    def layer(
        self,
        attention: Any,
        shape: AttentionShape,
        params: Mapping[str, Scalar],
        inputs: Mapping[str, Tensor],
        kv: Tensor,
    ) -> dict[str, Tensor]:
        """Write and forward of one layer of the judge's engine; a step's first layer brings its meta."""
        if "cu_q" in inputs:
            # The judge reuses the buffers of this message for the next one.
            self.metas[shape] = meta_of(params, {name: inputs[name].clone() for name in META_TENSORS})
            attention.plan(self.metas[shape])
        meta = self.metas[shape]
        attention.write(inputs["k"], inputs["v"], kv, meta)
        return {"out": attention.forward(inputs["q"], inputs["k"], inputs["v"], kv, meta)}


class AttentionChannel:
    """What the remote attentions of one engine share."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.names: dict[int, str] = {}
        """The name under which the host holds a cache, by the address of the judge's view."""


class RemoteAttention:
    """An `Attention` in the judge's engine whose `forward` is one message to the implementation.

    The cache is the judge's shared buffer in the standard layout. Outputs are the judge's own copies.
    """

    channel: ClassVar[AttentionChannel]

    def __init__(self, shape: AttentionShape) -> None:
        self.shape = shape
        self.planned = False

    def kv_spec(self, num_blocks: int, block_size: int, dtype: str) -> TensorSpec:
        """The standard layout."""
        return standard_kv(self.shape, num_blocks, block_size, dtype)

    def allocate(self, name: str, spec: TensorSpec, device: torch.device | str = "cpu") -> Tensor:
        """A zeroed cache shared with the implementation under `name`."""
        zeros = torch.zeros(spec.shape, dtype=spec.torch_dtype, device=device)
        view = self.channel.runner.hold({name: Held(zeros, "write")})[name]
        self.channel.names[view.data_ptr()] = name
        return view

    def plan(self, meta: StepMeta) -> None:
        """Sent along with the step's first layer."""
        self.planned = False

    def write(self, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> None:
        """Done by the implementation together with `forward`."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        """Writes and attends in the host. Raises CallFailed."""
        inputs = {"q": q.contiguous(), "k": k.contiguous(), "v": v.contiguous()}
        if not self.planned:
            inputs.update(meta_inputs(meta))
            self.planned = True
        call = Call(
            operation="layer",
            params={**shape_params(self.shape), **meta_params(meta), "kv": self.channel.names[kv.data_ptr()]},
            inputs=inputs,
            outputs={"out": TensorSpec.of(q)},
        )
        return self.channel.runner.run(call)["out"]


class RemoteEvictingAttention(RemoteAttention):
    """One whose implementation also offers `evict`."""

    def evict(self, kv: Tensor, meta: StepMeta) -> Tensor:
        """int64, the pages that may be freed. Raises CallFailed."""
        blocks = kv.shape[1]
        call = Call(
            operation="evict",
            params={
                **shape_params(self.shape),
                **meta_params(meta),
                "kv": self.channel.names[kv.data_ptr()],
                "blocks": blocks,
            },
            inputs=meta_inputs(meta),
            outputs={"free": TensorSpec((blocks,), "bool")},
        )
        return self.channel.runner.run(call)["free"].nonzero().flatten()


ATTENTION = AttentionKind()
