"""What the integration suite judges with: the judge's own engine, once with its reference and once with the slot's calls in a host."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

import engine
from engine import quality
from engine.corpus import evaluation_tokens, needle_tokens
from engine.generate import Engine
from engine.loader import load_model
from engine.slots.kind import Call, Finding, HeldSet, Preparation
from workers.judge.trial import StageTimedOut, SteadyHost, Trial, Wrong

T = TypeVar("T")

CHECKPOINT = Path(engine.__file__).resolve().parent / "checkpoints" / "reference"
# One long pass in chunks, and short texts token by token: prefill, mixed steps and decoding.
TEXTS = 4
TEXT_TOKENS = 768
CHUNK = 320
DECODED_TEXTS = 6
DECODED_TOKENS = 64
NEEDLE_LENGTHS = (512, 1024)
NEEDLE_DEPTHS = (0.1, 0.5, 0.9)
NEEDLES_PER_CELL = 1
KINDS_WITH_NEEDLES = ("attention",)
DISTURBANCE = 0.05


def text_lengths() -> list[int]:
    """Tokens of each text: long ones, then short ones."""
    return [TEXT_TOKENS] * TEXTS + [DECODED_TOKENS] * DECODED_TEXTS


def tensors_of(texts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """The tokens of texts as int64 tensors, by number."""
    return {f"{number:03d}": torch.tensor(tokens, dtype=torch.int64) for number, tokens in enumerate(texts)}


class PackedAway(SteadyHost):
    """A Runner whose preparations run in one host, and whose calls run in a fresh one that holds only the results."""

    def __init__(self, trial: Trial, side: Any) -> None:
        super().__init__(trial, side)
        self._packing = False
        self._kept: HeldSet = {}

    def prepare(self, preparation: Preparation) -> dict[str, Tensor]:
        if not self._packing:
            self._packing = True
            self.client()
            self.trial.hosts.start_ahead(self.side)
        return super().prepare(preparation)

    def hold(self, held: HeldSet) -> dict[str, Tensor]:
        if not self._packing:
            return super().hold(held)
        self._kept |= held
        return {name: item.tensor for name, item in held.items()}

    def run(self, call: Call) -> dict[str, Tensor]:
        if self._packing:
            self.discard()
            self._packing = False
            super().hold(self._kept)
        return super().run(call)


class IntegrationBench:
    """Texts drawn from the attempt's secret seed, and what both engines make of them."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.kind = trial.subject.kind
        self.header = trial.subject.header
        self.source = trial.source.child("integration")
        self.quality: dict[str, float] = {}
        self.meets: tuple[str, ...] = ()
        self.figures: dict[str, float] = {}
        self.noise = 0.0
        self._needle_ratio: float | None = None
        self._measured: quality.Quality | None = None
        # The reference needs no host: what it makes of the texts is found out while the subject's host is at work.
        self._beside = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reference")

    def parameters(self) -> dict[str, Sequence[Any]]:
        """The needle grid only for kinds that decide where a token looks."""
        return {"cell": NEEDLE_LENGTHS if self.kind.name in KINDS_WITH_NEEDLES else ()}

    # -- what is drawn ----------------------------------------------------------------------------------------------

    @cached_property
    def texts(self) -> list[list[int]]:
        """Long texts, then short ones."""
        drawn = []
        self._scored: list[Tensor] = []
        for number, tokens in enumerate(text_lengths()):
            text = evaluation_tokens(self.source.child("text", number).key, tokens)
            drawn.append([int(token) for token in text.ids])
            self._scored.append(torch.from_numpy(text.scored.copy()))
        self.trial.note("integration/texts", tensors_of(drawn))
        return drawn

    # -- the two engines --------------------------------------------------------------------------------------------

    @cached_property
    def reference(self) -> Engine:
        """The judge's engine with nothing but the reference in it."""
        return self._engine({})

    @cached_property
    def host(self) -> PackedAway:
        """The host that the subject's calls go to."""
        return PackedAway(self.trial, self.trial.subject.head)

    @cached_property
    def subject(self) -> Engine:
        """The judge's engine whose calls of the slot go to the host."""
        return self._engine({self.kind.name: self.proxy})

    @cached_property
    def proxy(self) -> Any:
        """What stands for the slot in the judge's engine."""
        return self.kind.proxy(self.host, self.header)

    def _engine(self, slots: dict[str, Any]) -> Engine:
        model = load_model(CHECKPOINT, dtype=torch.float32, device=self.trial.environment.device)
        return Engine(
            model, slots, trusted=True, graphs=False, max_len=4096, kv_tokens=8192, step_tokens=2048, max_batch=16
        )

    def _awaited(self, future: "Future[T]") -> T:
        """What is done beside the host, within what is left of the stage."""
        try:
            return future.result(timeout=self.trial.remaining())
        except TimeoutError:
            raise StageTimedOut("The stage's time is up.") from None

    def _logits(self, engine_: Engine) -> list[Tensor]:
        return engine_.logits(self.texts[:TEXTS], chunk=CHUNK) + engine_.logits(self.texts[TEXTS:], chunk=1)

    def _by_reference(self) -> tuple[list[Tensor], float]:
        logits = self._logits(self.reference)
        return logits, quality.noise_floor(self.reference, self.texts[:2], logits[:2])

    def _by_disturbed(self) -> list[Tensor] | None:
        generator = self.source.child("disturbed").generator()
        module = self.kind.disturbed(DISTURBANCE, generator)
        if module is None:
            return None
        return self._engine({self.kind.name: module}).logits(self.texts[:TEXTS], chunk=CHUNK)

    def _as_bad_as(self, ours: list[Tensor], theirs: list[Tensor], disturbed: list[Tensor]) -> float:
        """The error at random from which quality suffers as much, in the long text that suffers least: a host knows which rows are of which.

        Divergence grows as the square of a small error.
        """
        found = []
        for number, known in enumerate(disturbed):
            text, scored = [self.texts[number]], [self._scored[number]]
            here, there = (
                quality.compare([ours[number]], [other], text, scored).mean_kl.value
                for other in (theirs[number], known)
            )
            found.append(float(DISTURBANCE * (here / there) ** 0.5))
        return min(found)

    # -- what is judged ---------------------------------------------------------------------------------------------

    def measure(self) -> None:
        """Scores the texts with both engines. Raises Wrong where the declared class is not kept, CallFailed of the host."""
        self.trial.hosts.start_ahead(self.trial.subject.head)
        texts = self.texts
        by_reference, by_disturbed = self._beside.submit(self._by_reference), self._beside.submit(self._by_disturbed)
        self.trial.say(
            "integration", f"{len(texts)} texts, once with {self.header.name} and once with the reference", 0, 0, ""
        )
        theirs = self._logits(self.subject)
        figures = self.kind.figures_of_model(self.proxy)
        ours, self.noise = self._awaited(by_reference)
        try:
            found = quality.compare(ours, theirs, texts, self._scored)
        except ValueError as error:
            raise Wrong(Finding(f"{error} The slot's output upsets the model."), code="not_finite") from None
        self._measured = found
        self.quality = {
            "delta_ppl": found.delta_ppl.value,
            "delta_ppl_low": found.delta_ppl.low,
            "delta_ppl_high": found.delta_ppl.high,
            "mean_kl": found.mean_kl.value,
            "mean_kl_high": found.mean_kl.high,
            "top1": found.top1.value,
            "top1_low": found.top1.low,
            "noise_floor_kl": self.noise,
            "perplexity": found.perplexity,
            "tokens": float(found.tokens),
        }
        self.meets = quality.classes_met(found, self.noise, self._needle_ratio)
        self._decide()
        disturbed = self._awaited(by_disturbed)
        if disturbed is not None:
            figures = self.kind.borne_out(figures, self._as_bad_as(ours, theirs, disturbed))
        self.trial.model_figures = figures

    def _decide(self) -> None:
        assert self._measured is not None
        declared = self.header.quality_class
        short = quality.shortfalls(declared, self._measured, self.noise, self._needle_ratio)
        if short:
            met = f" It meets class {self.meets[0]}: declare that." if self.meets else " It meets no class."
            raise Wrong(
                Finding(f"The module does not keep its declared class {declared}: {'; '.join(short)}.{met}"),
                "evaluation texts",
                "below_class",
                f"{TEXTS} texts of {TEXT_TOKENS} tokens in chunks of {CHUNK} and {DECODED_TEXTS} of {DECODED_TOKENS} tokens one by "
                "one, drawn from the attempt's seed as integration/text/NUMBER",
            )

    def find_needles(self, length: int) -> None:
        """Recall of hidden keys at each depth of documents of `length` tokens, against the reference's own."""
        needles = [
            quality.Needle(length, depth, [int(t) for t in drawn.prompt], [int(t) for t in drawn.answer])
            for depth in NEEDLE_DEPTHS
            for number in range(NEEDLES_PER_CELL)
            for drawn in [needle_tokens(self.source.child("needle", length, str(depth), number).key, length, depth)]
        ]

        def said(done: int, total: int) -> None:
            self.trial.say("integration", f"Needles in {length} tokens", done, total, "documents")

        by_reference = self._beside.submit(quality.needle_recall, self.reference, needles)
        theirs = quality.needle_recall(self.subject, needles, said)
        ours = self._awaited(by_reference)
        cell, ratio = quality.worst_cell(ours, theirs)
        self.quality["needle"] = min(self.quality.get("needle", 1.0), ratio)
        self._needle_ratio = self.quality["needle"]
        if self._measured is not None:
            self.meets = quality.classes_met(self._measured, self.noise, self._needle_ratio)
        limit = quality.LIMITS["S"].needle or 0.0
        if ratio < limit:
            raise Wrong(
                Finding(
                    f"Of the keys hidden {cell[1]:.0%} into documents of {cell[0]} tokens, the model with this module finds "
                    f"{theirs[cell]:.0%}; with the reference it finds {ours[cell]:.0%}."
                ),
                f"needles in {length} tokens",
                "needle_lost",
                f"Documents of {length} tokens with a key at {', '.join(f'{depth:.0%}' for depth in NEEDLE_DEPTHS)} of their length, "
                "drawn from the attempt's seed as integration/needle/LENGTH/DEPTH/NUMBER",
            )

    def close(self) -> None:
        """Ends the host, where one was opened, and what is done beside it."""
        self._beside.shutdown(wait=True, cancel_futures=True)
        if "host" in self.__dict__:
            self.host.discard()
