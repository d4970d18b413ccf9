"""What must hold of every attention beside closeness to the reference on random steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.reference.attention import attention as reference
from engine.slots.attention import AttentionShape, StepMeta, step_meta
from engine.slots.caps import Caps, dtypes_for
from engine.slots.compare import COARSE, EPSILON, compare_output, same_bits
from engine.slots.drawing import draw_tensor, permutation
from engine.slots.header import Header
from engine.slots.kind import Call, CallFailed, Environment, Finding, Held, Property, Runner, TensorSpec
from engine.slots.source import Source
from engine.workloads.attention import AttentionWorkload

if TYPE_CHECKING:
    from engine.slots.kinds.attention import AttentionKind

PAGE = 8
LOUD = 40.0
"""Size of a changed value: its share in a softmax over a hundred tokens still stands out from any rounding."""


@dataclass(frozen=True)
class Step:
    """A step of the properties' own making: the content of the cache, and the new tokens."""

    origin: Tensor
    meta: StepMeta
    q: Tensor
    k: Tensor
    v: Tensor

    def owner(self) -> list[tuple[int, int]]:
        """(sequence, position) of each row."""
        bounds = self.meta.cu_q.tolist()
        positions = self.meta.positions.tolist()
        return [(b, positions[row]) for b in range(len(bounds) - 1) for row in range(bounds[b], bounds[b + 1])]


class Bench:
    """Steps of one shape and dtype, run through a runner and compared with one another."""

    def __init__(self, kind: "AttentionKind", header: Header, environment: Environment, window: int = 0) -> None:
        self.caps = Caps.of(header)
        self.quality_class = header.quality_class
        self.dtype = dtypes_for(header, environment)[0]
        self.device = environment.device
        head_dim = 64 if not self.caps.head_dims or 64 in self.caps.head_dims else self.caps.head_dims[0]
        group = 2 if self.caps.max_group != 1 else 1
        workload = AttentionWorkload("property", 2 * group, 2, head_dim, PAGE, "1/1", window)
        # What class S selects is judged by its cases; properties look at its output only.
        self.case = kind.case(workload, self.dtype, self.device, "unit", self.caps)
        self.shape = AttentionShape(2 * group, 2, head_dim, head_dim**-0.5, window or None)

    def drawn(self, source: Source, rows: int, heads: int) -> Tensor:
        """Random [rows, heads, head_dim]."""
        dtype = TensorSpec((), self.dtype).torch_dtype
        return draw_tensor(source, (rows, heads, self.shape.head_dim), dtype, self.device)

    def step(self, source: Source, new: list[int], total: list[int]) -> Step:
        """A step on randomly placed pages."""
        width = -(-max(total) // PAGE)
        blocks = width * len(new) + 2
        table = torch.tensor(permutation(source, blocks)[: width * len(new)]).view(len(new), width)
        origin = self.drawn(source, 2 * blocks * PAGE, self.shape.kv_heads)
        rows = sum(new)
        return Step(
            origin.view(1, 2, blocks, PAGE, self.shape.kv_heads, self.shape.head_dim),
            step_meta(new, total, table, PAGE, self.device),
            self.drawn(source, rows, self.shape.q_heads),
            self.drawn(source, rows, self.shape.kv_heads),
            self.drawn(source, rows, self.shape.kv_heads),
        )

    def hold(self, runner: Runner, step: Step) -> None:
        """Gives the implementation a cache with the step's content."""
        from engine.slots.kinds.attention import fill

        if self.caps.kv == "standard":
            runner.hold({"kv": Held(step.origin.clone(), "write")})
            return
        results = runner.prepare(fill(self.case, step.origin))
        runner.hold({name: Held(value, "write") for name, value in results.items()})

    def call(self, step: Step) -> Call:
        """The step's call."""
        from engine.slots.kinds.attention import step_call

        call = step_call(self.case, step.meta, step.q, step.k, step.v)
        call.check_state = ()
        return call

    def run(self, runner: Runner, step: Step) -> Tensor:
        """The output of a step over a cache that is as the step says."""
        self.hold(runner, step)
        return runner.run(self.call(step))["out"].float()

    def changed(self, a: Tensor, b: Tensor) -> Tensor:
        """bool[rows]: where two outputs differ by more than rounding, and for coarse classes more than theirs."""
        share = COARSE[self.quality_class].element if self.quality_class in COARSE else 8 * EPSILON[self.dtype]
        difference = (a - b).abs().flatten(1).amax(1)
        magnitude = a.abs().flatten(1).amax(1).clamp(min=float(a.abs().mean()))
        return ~(difference <= share * magnitude)


def attention_properties(kind: "AttentionKind", header: Header, environment: Environment) -> Sequence[Property]:
    """The properties that an implementation with this header must have."""
    caps = Caps.of(header)
    bench = Bench(kind, header, environment)
    dense = header.quality_class != "S"

    def reach(bench: Bench, runner: Runner, source: Source, new: list[int], total: list[int]) -> Finding | None:
        """Changes one new token, and looks at which outputs change."""
        step = bench.step(source, new, total)
        before = bench.run(runner, step)
        owner = step.owner()
        window = bench.shape.window
        for sequence in range(len(new)):
            first = int(step.meta.cu_q[sequence])
            row = first + source.integer(0, new[sequence] - 1)
            position = owner[row][1]
            k, v = step.k.clone(), step.v.clone()
            v[row] = LOUD
            after = bench.run(runner, Step(step.origin, step.meta, step.q, k, v))
            changed = bench.changed(before, after).tolist()
            for other, (its_sequence, its_position) in enumerate(owner):
                if its_sequence != sequence and changed[other]:
                    return Finding(
                        f"Sequences are mixed up: changing token {position} of sequence {sequence} changed the output at "
                        f"position {its_position} of sequence {its_sequence}.",
                        "out",
                        (other,),
                    )
                if its_sequence != sequence:
                    continue
                if its_position < position and changed[other]:
                    return Finding(
                        f"It sees the future: changing token {position} changed the output at position {its_position} < "
                        f"{position} (sequence {sequence}, {new[sequence]} new tokens of {total[sequence]}).",
                        "out",
                        (other,),
                    )
                in_reach = its_position >= position and (window is None or its_position < position + window)
                if its_position >= position and not in_reach and changed[other]:
                    return Finding(
                        f"It looks beyond its window of {window}: changing token {position} changed the output at "
                        f"position {its_position}, {its_position - position} later.",
                        "out",
                        (other,),
                    )
                if dense and in_reach and not changed[other]:
                    what = "its own token" if its_position == position else f"token {position}"
                    return Finding(
                        f"It is blind: position {its_position} does not see {what}; changing that token's value left "
                        f"the output there as it was (sequence {sequence}, {new[sequence]} new of {total[sequence]}).",
                        "out",
                        (other,),
                    )
        return None

    def causality(runner: Runner, source: Source) -> Finding | None:
        for new, total in (([24], [24]), ([9, 13], [30, 13])):
            for tries in range(2):
                finding = reach(bench, runner, source.child(str(new), tries), new, total)
                if finding is not None:
                    return finding
        return None

    def windows(runner: Runner, source: Source) -> Finding | None:
        windowed = Bench(kind, header, environment, window=11)
        for tries in range(3):
            finding = reach(windowed, runner, source.child(tries), [40, 12], [40, 35])
            if finding is not None:
                return finding
        return None

    def past(runner: Runner, source: Source) -> Finding | None:
        step = bench.step(source, [1, 5], [37, 29])
        before = bench.run(runner, step)
        for sequence, row in ((0, 0), (1, 1)):
            history = int(step.meta.positions[row])
            position = source.integer(0, history - 1)
            page = int(step.meta.block_table[sequence, position // PAGE])
            origin = step.origin.clone()
            origin[0, 1, page, position % PAGE] = LOUD
            changed = bench.changed(before, bench.run(runner, Step(origin, step.meta, step.q, step.k, step.v)))
            if bool(changed[1 - row]) if sequence else bool(changed[1:].any()):
                return Finding(
                    f"Sequences are mixed up: a changed token {position} in the cache of sequence {sequence} changed the "
                    "output of the other sequence.",
                    "out",
                )
            if dense and not bool(changed[row]):
                return Finding(
                    f"It forgets: changing the cached token {position} of {history} (page {page}, offset "
                    f"{position % PAGE}) left the output of the next token as it was.",
                    "out",
                    (row,),
                )
        return None

    def paging(runner: Runner, source: Source) -> Finding | None:
        step = bench.step(source, [1, 7, 19], [41, 23, 19])
        before = bench.run(runner, step)
        blocks = step.origin.shape[2]
        place = torch.tensor(permutation(source, blocks))
        origin = torch.empty_like(step.origin)
        origin[:, :, place] = step.origin
        table = place[step.meta.block_table.long().cpu()]
        news, totals = step.meta.cu_q.diff().tolist(), step.meta.kv_len.tolist()
        moved = step_meta(news, totals, table, PAGE, bench.device)
        after = bench.run(runner, Step(origin, moved, step.q, step.k, step.v))
        return rows_agree(step, before, after, "the same content on other pages gives another output")

    def rows_agree(step: Step, before: Tensor, after: Tensor, what: str) -> Finding | None:
        changed = bench.changed(before, after)
        if not bool(changed.any()):
            return None
        row = int(changed.to(torch.uint8).argmax())
        sequence, position = step.owner()[row]
        at = int((before[row] - after[row]).abs().flatten().argmax())
        one, other = float(before[row].flatten()[at]), float(after[row].flatten()[at])
        return Finding(
            f"{what[0].upper()}{what[1:]}: at position {position} of sequence {sequence}, {other:.6g} instead of {one:.6g}.",
            "out",
            (row,),
            one,
            other,
        )

    def batch_order(runner: Runner, source: Source) -> Finding | None:
        new, total = [1, 6, 1, 14], [20, 22, 9, 14]
        step = bench.step(source, new, total)
        before = bench.run(runner, step)
        order = permutation(source, len(new))
        bounds = step.meta.cu_q.tolist()
        rows = [row for b in order for row in range(bounds[b], bounds[b + 1])]
        meta = step_meta(
            [new[b] for b in order], [total[b] for b in order], step.meta.block_table.cpu()[order], PAGE, bench.device
        )
        shuffled = Step(step.origin, meta, step.q[rows], step.k[rows], step.v[rows])
        after = torch.empty_like(before)
        after[rows] = bench.run(runner, shuffled)
        if caps.batch_invariant:
            return same_bits(
                "out", after, before, "It is declared batch_invariant, but another order of the batch gives other bits."
            )
        return rows_agree(step, before, after, "another order of the batch gives another output")

    def continuation(runner: Runner, source: Source) -> Finding | None:
        tokens = 21
        whole = bench.step(source, [tokens], [tokens])
        table = whole.meta.block_table.cpu()
        at_once = bench.run(runner, whole)
        bench.hold(runner, whole)
        pieces = []
        done = 0
        for count in (9, 1, 1, 4, 1, 1, 1, 1, 1, 1):
            meta = step_meta([count], [done + count], table, PAGE, bench.device)
            part = slice(done, done + count)
            piece = Step(whole.origin, meta, whole.q[part], whole.k[part], whole.v[part])
            pieces.append(runner.run(bench.call(piece))["out"].float())
            done += count
        return rows_agree(
            whole,
            at_once,
            torch.cat(pieces),
            "chunks and single tokens over the same cache give another output than one prefill",
        )

    def stale(runner: Runner, source: Source) -> Finding | None:
        first = bench.step(source.child("first"), [1, 1, 6], [26, 13, 30])
        other = bench.step(source.child("other"), [1, 1, 6], [26, 13, 30])
        bench.run(runner, first)
        meta = step_meta([1, 1, 6], [26, 13, 30], first.meta.block_table.cpu(), PAGE, bench.device)
        second = Step(other.origin, meta, other.q, other.k, other.v)
        got = bench.run(runner, second)
        written = second.origin[0].clone()
        slots = written.flatten(1, 2)
        slots[0, meta.slot_map], slots[1, meta.slot_map] = second.k, second.v
        wanted = reference(second.q, written, meta, bench.shape)
        if not bool(bench.changed(wanted, got).any()) or not dense:
            return None
        return rows_agree(second, wanted, got, "with new content on the same pages, the output is out of date")

    def again(runner: Runner, source: Source) -> Finding | None:
        step = bench.step(source, [1, 6, 17], [33, 20, 17])
        first, second = bench.run(runner, step), bench.run(runner, step)
        return same_bits("out", second, first, "The same call gave other bits the second time.")

    def refusal(runner: Runner, source: Source) -> Finding | None:
        head_dim = next(size for size in (80, 96, 48, 72) if size not in caps.head_dims)
        shape = AttentionShape(4, 2, head_dim, head_dim**-0.5)
        wide = Bench(kind, header, environment)
        wide.shape = shape
        wide.case = kind.case(
            AttentionWorkload("refusal", 4, 2, head_dim, PAGE, "1/1"), wide.dtype, wide.device, "unit", caps
        )
        step = wide.step(source, [5, 1], [5, 12])
        try:
            got = wide.run(runner, step)
        except CallFailed:
            return None
        written = step.origin[0].clone()
        slots = written.flatten(1, 2)
        slots[0, step.meta.slot_map], slots[1, step.meta.slot_map] = step.k, step.v
        finding = compare_output(
            "out", got, reference(step.q, written, step.meta, shape), None, wide.dtype, header.quality_class, "token"
        )
        if finding is None:
            return None
        return Finding(
            f"A head size of {head_dim} is not among its head_dims {list(caps.head_dims)}; it must refuse such a shape with "
            f"an error, but it answers with wrong numbers. {finding.sentence}",
            "out",
            finding.index,
            finding.expected,
            finding.got,
        )

    def gradients(runner: Runner, source: Source) -> Finding | None:
        return check_gradients(bench, runner, source)

    checks: list[tuple[str, str, Callable[[Runner, Source], Finding | None]]] = []
    if "prefill" in caps.phases:
        checks.append(("causality", "No output depends on a later token or another sequence.", causality))
        if caps.window:
            checks.append(("window", "A token sees exactly the window before it.", windows))
    if "mixed" in caps.phases:
        checks += [
            ("past", "Every cached token of a sequence counts, and no other.", past),
            ("paging", "The output does not depend on which pages hold the cache.", paging),
            ("batch order", "The output does not depend on the order of the batch.", batch_order),
            ("stale cache", "New content of the same pages is seen.", stale),
        ]
        if caps.deterministic:
            checks.append(("determinism", "The same call gives the same bits.", again))
    if dense and set(caps.phases) == {"prefill", "decode", "mixed"}:
        checks.append(("continuation", "Chunks and single tokens give what one prefill gives.", continuation))
    if caps.head_dims and "mixed" in caps.phases:
        checks.append(("refusal", "A head size beyond the declared ones is refused, or right.", refusal))
    if caps.trainable and "mixed" in caps.phases:
        checks.append(("gradients", "Gradients by autograd are those of the definition.", gradients))
    return [Property(name, statement, check) for name, statement, check in checks]


def check_gradients(bench: Bench, runner: Runner, source: Source) -> Finding | None:
    """Trainable: gradients of a sum of the output, weighted at random, by q, k and v."""
    step = bench.step(source, [12, 7], [12, 7])
    weight = bench.drawn(source, step.q.shape[0], bench.shape.q_heads)
    bench.hold(runner, step)
    call = bench.call(step)
    inputs = {**call.inputs, "weight": weight}
    specs = {f"d{name}": TensorSpec.of(tensor) for name, tensor in (("q", step.q), ("k", step.k), ("v", step.v))}
    got = runner.run(Call("backward", call.params, inputs, specs))
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [tensor.float().clone().requires_grad_() for tensor in (step.q, step.k, step.v)]
        written = step.origin[0].float().clone()
        slots = written.flatten(1, 2)
        slots = slots.index_copy(1, step.meta.slot_map, torch.stack((leaves[1], leaves[2])))
        out = reference(leaves[0], slots.view(written.shape), step.meta, bench.shape)
        wanted = torch.autograd.grad((out * weight.float()).sum(), leaves)
    for name, gradient in zip(specs, wanted, strict=True):
        finding = compare_output(f"the gradient {name}", got[name], gradient, None, bench.dtype, "E", "token")
        if finding is not None:
            return finding
    return None
