"""The engine: requests in, text out, and the logits that quality is judged by."""

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from engine import bind
from engine.kv_cache import PagePool
from engine.loader import load_model, out_of_memory, usable_device
from engine.models.transformer import DENSE, Forward, Model
from engine.runner.inputs import StepInputs
from engine.runner.runner import Runner, allocate, kv_specs
from engine.sampler import Sampling
from engine.scheduler import Scheduled, Scheduler
from engine.scheduler import Sequence as Run
from engine.tokenizer import GrowingText, Tokenizer

Prompt = str | Sequence[int]
Finish = Literal["stop", "length", "error"]
# Left free beside weights and cache for activations and the logits of a full step.
ACTIVATION_BYTES = 2 << 30
# A CPU has no memory of its own to fill: its default cache is bounded.
CPU_CACHE_BYTES = 4 << 30
OUT_OF_MEMORY = "The device ran out of memory in a step of {} sequences. Lower step_tokens, max_batch or kv_tokens; the engine goes on."
SLOTS = ("attention", "quantization", "normalization", "activation", "adapter")


class EngineError(ValueError):
    """The engine cannot be set up as asked, or memory does not suffice; `str(error)` says what to change."""


class RequestError(ValueError):
    """A request cannot be served; `str(error)` says why. Others in its batch are."""


@dataclass(frozen=True)
class Request:
    """A prompt (text, tokens) and how to continue it. Stop strings are not part of the text that is returned."""

    prompt: Prompt
    max_tokens: int = 128
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass
class Completion:
    """What became of a request. Times are seconds.

    ttft: from submission to the first token; tpot: mean time of each further token; shared: tokens of the prompt whose
    keys and values were found in the cache; error: a sentence where finish is "error".
    """

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: Finish | None = None
    error: str | None = None
    prompt_tokens: int = 0
    shared: int = 0
    preemptions: int = 0
    ttft: float = 0.0
    tpot: float = 0.0


@dataclass(slots=True)
class Event:
    """News of request `index`: the tokens that it gained, the text that they settled, and how it ended, if it did."""

    index: int
    tokens: tuple[int, ...]
    text: str
    completion: Completion


@dataclass
class _Live:
    """A request under way."""

    index: int
    request: Request
    run: Run
    completion: Completion
    growing: GrowingText | None
    began: float
    first: float = 0.0
    events: deque[Event] = field(default_factory=deque)


class Engine:
    """A model with its slots, its KV cache and its scheduler.

    model: a Model, or the folder of a checkpoint, which is loaded in `dtype` (default: its own) onto `device` (default: CPU).
    slots: by kind, the name of an implementation or an object that fulfils the kind's contract; `quantization` also
        takes patterns (`engine.slots.patterns`). What is left out is the kind's default, or what the adapter binds.
    max_len: longest sequence in tokens (default: the model's context). kv_tokens: capacity of the cache over all
        sequences (default: on CUDA, what `memory_share` of the free memory holds; on the CPU, `max_len` tokens, at
        least 8,192). block_size: tokens a page. max_batch: sequences at once. step_tokens: tokens a step.
    graphs: CUDA graphs for decode (default: on CUDA, where the attention's header allows them); `ahead`: tokens that they
        decode between two looks of the host. compile: torch.compile and, for one token on a CPU, AOTInductor.
    trusted: what `slots` leaves out is the reference (`engine.reference`) instead, so that no slot file is run.
    Raises EngineError, SlotRefused, SlotError, LoadError or ConfigError before anything is computed.
    """

    def __init__(
        self,
        model: Model | str | Path,
        slots: Mapping[str, Any] | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        max_len: int | None = None,
        kv_tokens: int | None = None,
        memory_share: float = 0.9,
        block_size: int = 32,
        max_batch: int = 64,
        step_tokens: int = 2048,
        graphs: bool | None = None,
        ahead: int = 8,
        compile: bool = False,
        trusted: bool = False,
    ) -> None:
        slots = dict(slots or {})
        if unknown := set(slots) - set(SLOTS):
            raise EngineError(f"There is no slot {sorted(unknown)[0]!r}; the slots are {', '.join(SLOTS)}.")
        if isinstance(model, Model):
            if dtype not in (None, model.dtype) or (device and usable_device(device).type != model.device.type):
                raise EngineError(
                    f"The model is {model.dtype} on {model.device}, not {dtype or model.dtype} on {device or model.device}; "
                    "load it so, or leave dtype and device out."
                )
            schemes = bind.schemes(slots.get("quantization"), model.config, model.dtype, model.device)
            model = model.quantized(schemes) if schemes else model
        else:
            folder = model
            model = load_model(folder, dtype=dtype, device=device or "cpu", quantization=slots.get("quantization"))
            if tokenizer is None and (Path(folder) / "tokenizer.json").is_file():
                tokenizer = Tokenizer.load(folder)
        config = model.config
        if trusted:
            slots = bind.trusted(slots, config.norm_eps)
        if block_size < 1 or max_batch < 1 or step_tokens < max_batch:
            raise EngineError(
                f"block_size ({block_size}) and max_batch ({max_batch}) must be at least 1, and step_tokens ({step_tokens}) "
                "at least max_batch, so that every sequence can decode in a step."
            )
        where = (model.dtype, model.device)
        operators = bind.adapter_operators(slots.get("adapter"), *where)
        if "linear" in operators:
            bound = bind.BoundLinear(operators["linear"])
            model = model.quantized({linear.name: bound for linear in model.linears() if linear.scheme is DENSE})
        self.model, self.tokenizer, self.step_tokens = model, tokenizer, step_tokens
        if max_len is not None and max_len < 2:
            raise EngineError(f"max_len is {max_len}; it must be at least 2, a token of the prompt and one more.")
        self.max_len = min(max_len or config.context, config.context)
        attention = bind.attention_layers(slots.get("attention"), config, *where)
        self.forward = Forward(model, bind.parts(slots, operators, config, *where), attention, self.max_len)
        self.untrainable = bind.untrainable(slots)
        self.evicts = all(hasattr(each, "evict") for each in self.forward.planned)
        if graphs is None:
            graphs = model.device.type == "cuda" and not self.evicts and bind.allows_graphs(slots.get("attention"))
        if graphs and (model.device.type != "cuda" or self.evicts):
            raise EngineError("CUDA graphs need a CUDA device and an attention that does not evict; use graphs=False.")
        self.ahead = min(ahead, block_size) if graphs else 1
        if compile:
            self.forward.compile()
        pages = 1 + self._pages(kv_tokens, memory_share, block_size)
        self.pool = PagePool(pages, block_size)
        self._live: dict[Run, _Live] = {}
        self.scheduler = Scheduler(self.pool, max_batch, step_tokens)
        try:
            self.runner = Runner(self.forward, pages, block_size, self.ahead if graphs else 0)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            size = sum(spec.nbytes for spec in kv_specs(self.forward, pages, block_size))
            raise EngineError(
                f"A KV cache of {(pages - 1) * block_size:,} tokens takes {size / 2**30:.1f} GiB, which this device does not "
                "have free; lower kv_tokens or max_len."
            ) from None

    def _pages(self, kv_tokens: int | None, memory_share: float, block_size: int) -> int:
        page = sum(spec.nbytes for spec in kv_specs(self.forward, 1, block_size))
        if kv_tokens is not None:
            return max(1, -(-kv_tokens // block_size))
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()  # what packing the weights has left behind
            free = torch.cuda.mem_get_info(self.model.device)[0] - ACTIVATION_BYTES
            pages = int(free * memory_share) // page
            if pages < 1:
                raise EngineError(
                    f"Beside the weights {self.model.device} has {(free + ACTIVATION_BYTES) / 2**30:.1f} GiB free, too little for "
                    "activations and a KV cache. Quantize the model, free memory, or try a small kv_tokens."
                )
            return pages
        return max(1, min(-(-max(self.max_len, 8192) // block_size), CPU_CACHE_BYTES // page))

    # -- text -------------------------------------------------------------------------------------------------------

    def generate(
        self, prompts: Prompt | Request | Iterable[Prompt | Request], max_tokens: int = 128, **options: Any
    ) -> list[Completion]:
        """Continues every prompt; a Completion for each, in order.

        `options`: temperature, top_k, top_p, min_p, seed (see Sampling), stop (strings), ignore_eos; a Request brings its
        own. A request that cannot be served has finish "error" and a sentence in `error`; the others are served.
        """
        completions: dict[int, Completion] = {}
        for event in self.stream(prompts, max_tokens, **options):
            completions[event.index] = event.completion
        return [completions[index] for index in sorted(completions)]

    def stream(
        self, prompts: Prompt | Request | Iterable[Prompt | Request], max_tokens: int = 128, **options: Any
    ) -> Iterator[Event]:
        """Like `generate`, but yields what each step gained; the last Event of a request has `completion.finish`."""
        mine: list[_Live] = []
        try:
            for index, request in enumerate(requests_of(prompts, max_tokens, options)):
                try:
                    each = self._begin(index, request)
                except RequestError as error:
                    yield Event(index, (), "", Completion(finish="error", error=str(error)))
                    continue
                mine.append(each)
                self._live[each.run] = each
                self.scheduler.add(each.run)
            while mine:
                # Streams may be consumed side by side: whoever steps leaves the others' news with them.
                if not any(each.events for each in mine):
                    self._step()
                for each in mine:
                    while each.events:
                        yield each.events.popleft()
                mine = [each for each in mine if each.completion.finish is None]
        finally:
            for each in mine:
                self._live.pop(each.run, None)
                self.scheduler.finish(each.run)

    def warm_up(self, batch_sizes: Sequence[int] = (1,)) -> float:
        """Serves short requests at these batch sizes, so that what compiles and what is recorded is ready; the seconds it took.

        Times of later requests of such sizes hold no compilation.
        """
        began = time.perf_counter()
        for batch in batch_sizes:
            prompts = [[(index + at) % self.model.config.vocab for at in range(8)] for index in range(batch)]
            self.generate(prompts, max_tokens=min(self.ahead + 2, self.max_len - 8), ignore_eos=True)
        return time.perf_counter() - began

    def _begin(self, index: int, request: Request) -> _Live:
        began = time.perf_counter()
        tokens = self._tokens(request.prompt)
        if not isinstance(request.max_tokens, int) or request.max_tokens < 1:
            raise RequestError(f"max_tokens is {request.max_tokens!r}; it must be a whole number, at least 1.")
        if not isinstance(request.sampling, Sampling):
            raise RequestError(f"sampling is {request.sampling!r}; it must be a Sampling.")
        if not isinstance(request.stop, tuple | list) or not all(isinstance(s, str) and s for s in request.stop):
            raise RequestError(f"stop is {request.stop!r}; it must be strings, none of them empty.")
        if request.stop and self.tokenizer is None:
            raise RequestError("Stop strings need a tokenizer; load the model from a folder with tokenizer.json.")
        room = min(self.max_len, self.pool.capacity * self.pool.block_size)
        if len(tokens) >= room:
            raise RequestError(
                f"The prompt has {len(tokens):,} tokens, but only {room - 1:,} fit (context {self.max_len:,}, cache "
                f"{self.pool.capacity * self.pool.block_size:,} tokens). Shorten it."
            )
        sampling = request.sampling.seeded(int.from_bytes(os.urandom(7), "big"))
        run = Run(tokens, min(len(tokens) + request.max_tokens, room), sampling, share=not self.evicts)
        growing = None if self.tokenizer is None else GrowingText(self.tokenizer, request.stop)
        return _Live(index, request, run, Completion(prompt_tokens=len(tokens)), growing, began)

    def _tokens(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise RequestError("The prompt is text, but there is no tokenizer; pass tokens, or load one.")
            try:
                prompt = self.tokenizer.encode(prompt)
            except Exception as error:  # the library raises what it likes, for half a surrogate pair a TypeError
                raise RequestError(f"The prompt cannot be made into tokens: {error}.") from None
        try:
            tokens = list(prompt)
        except TypeError:
            raise RequestError(f"The prompt is {prompt!r}; it must be text or a list of tokens.") from None
        if not tokens:
            raise RequestError("The prompt is empty; give at least one token.")
        vocab = self.model.config.vocab
        wrong = next((t for t in tokens if isinstance(t, bool) or not isinstance(t, int) or not 0 <= t < vocab), None)
        if wrong is not None:
            raise RequestError(f"The prompt holds {wrong!r}; tokens are whole numbers from 0 to {vocab - 1}.")
        return tokens

    def _step(self) -> None:
        step = self.scheduler.schedule()
        if not step:
            raise EngineError("The cache is full of texts that are being scored; go on when their logits are done.")
        try:
            with torch.inference_mode():
                decoding = self.ahead > 1 and all(s.new == 1 and s.samples for s in step)
                ahead = self.scheduler.reserve(step, self.ahead) if decoding else 1
                drawn = self.runner.tokens(step, ahead)
        except Exception as error:
            # What the step was computing is lost; what waits is not, and the pages are free again.
            for scheduled in step:
                self.scheduler.finish(scheduled.sequence)
                each = self._live.pop(scheduled.sequence)
                each.completion.finish = "error"
                each.completion.error = (
                    OUT_OF_MEMORY.format(len(step)) if out_of_memory(error) else f"The step failed: {error}"
                )
                each.events.append(Event(each.index, (), "", each.completion))
            if not out_of_memory(error):
                raise
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()
            return
        now = time.perf_counter()
        self.scheduler.advance(step)
        for scheduled, tokens in zip(step, drawn, strict=True):
            if tokens:
                scheduled.sequence.computed += len(tokens) - 1
                self._gained(self._live[scheduled.sequence], tokens, now)
        if self.evicts:
            self._evict(step)

    def _gained(self, each: _Live, tokens: list[int], now: float) -> None:
        run, completion, eos = each.run, each.completion, self.model.config.eos
        kept, text = [], ""
        for token in tokens:
            run.tokens.append(token)
            kept.append(token)
            if token in eos and not each.request.ignore_eos:
                completion.finish = "stop"
            elif each.growing is not None:
                text += each.growing.push(token)
                if each.growing.stopped:
                    completion.finish = "stop"
            if completion.finish is None and len(run.tokens) >= run.limit:
                completion.finish = "length"
            if completion.finish is not None:
                break
        completion.tokens += kept
        each.first = each.first or now
        if completion.finish is not None:
            del self._live[run]
            self.scheduler.finish(run)
            if each.growing is not None:
                text += each.growing.flush()
            completion.shared, completion.preemptions = run.shared, run.preemptions
            completion.ttft = each.first - each.began
            completion.tpot = (now - each.first) / max(1, len(completion.tokens) - 1)
        completion.text += text
        each.events.append(Event(each.index, tuple(kept), text, completion))

    def _evict(self, step: Sequence[Scheduled]) -> None:
        pages = self.runner.offered()
        for scheduled in step:
            self.scheduler.evict(scheduled.sequence, pages)

    # -- logits -----------------------------------------------------------------------------------------------------

    def logits(self, texts: Sequence[Sequence[int]], chunk: int | None = None) -> list[Tensor]:
        """float32 [T, vocab] for each text of T tokens: row t scores the token that follows `text[: t + 1]`.

        Texts are packed into steps of at most `step_tokens` tokens and `chunk` tokens of each text (1: token by token,
        as in decoding), through the paged cache. Raises RequestError for a text that cannot fit.
        """
        rows: list[list[Tensor]] = [[] for _ in texts]
        for index, _, piece in self.stream_logits(texts, chunk):
            rows[index].append(piece)
        return [torch.cat(pieces) for pieces in rows]

    def stream_logits(
        self, texts: Sequence[Sequence[int]], chunk: int | None = None
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Like `logits`, but yields (index of text, first position, float32 [t, vocab]) as they are computed."""
        runs = [Run(self._tokens(text), len(text), share=False) for text in texts]
        room = min(self.max_len, self.pool.capacity * self.pool.block_size)
        for run in runs:
            if run.limit > room:
                raise RequestError(f"A text has {run.limit:,} tokens; at most {room:,} fit this engine.")
        # A scheduler of its own, on the same pages, that admits a text only when all of it fits: nothing is preempted,
        # so no row is computed twice.
        waiting = list(enumerate(runs))[::-1]
        running: list[tuple[int, Run]] = []
        try:
            while waiting or running:
                while waiting and len(running) < self.scheduler.max_batch:
                    if not self.scheduler.grow(waiting[-1][1], waiting[-1][1].limit):
                        break
                    running.append(waiting.pop())
                if not running:
                    raise RequestError("The cache is full of requests under way; ask for logits when they are done.")
                step, owners, budget = [], [], self.step_tokens
                for index, run in running:
                    new = min(run.limit - run.computed, chunk or budget, budget)
                    if new:
                        step.append(Scheduled(run, new))
                        owners.append(index)
                        budget -= new
                with torch.inference_mode():
                    hidden = self.runner.hidden(step)
                at = 0
                for index, scheduled in zip(owners, step, strict=True):
                    with torch.inference_mode():
                        piece = self.forward.logits(hidden[at : at + scheduled.new])
                    yield index, scheduled.sequence.computed, piece
                    at += scheduled.new
                self.scheduler.advance(step)
                if self.evicts:
                    self._evict(step)
                for _, run in running:
                    if run.computed == run.limit:
                        self.scheduler.finish(run)
                running = [(index, run) for index, run in running if run.computed < run.limit]
        finally:
            for _, run in running:
                self.scheduler.finish(run)

    def differentiable_logits(self, texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """Like `logits`, in one step, with a graph for autograd from the model's tensors that require gradients.

        The cache is one of its own, so that generation is not disturbed. Raises EngineError where a slot that was given
        by name does not declare itself trainable, RequestError for a text beyond the context.
        """
        if self.untrainable:
            raise EngineError(
                f"No gradients flow through {', '.join(self.untrainable)}: the header lacks trainable = true."
            )
        runs = [Run(self._tokens(text), len(text), share=False) for text in texts]
        if (longest := max((run.limit for run in runs), default=0)) > self.max_len:
            raise RequestError(f"A text has {longest:,} tokens; the context is {self.max_len:,}.")
        size = self.pool.block_size
        pages = 1 + sum(-(-run.limit // size) for run in runs)
        pool = PagePool(pages, size)
        for run in runs:
            run.pages = [pool.take() for _ in range(-(-run.limit // size))]
        ids, meta = StepInputs(size, self.model.device).of([Scheduled(run, run.limit) for run in runs])
        for attention in self.forward.planned:
            attention.plan(meta)
        hidden = self.forward(ids, meta, allocate(self.forward, pages, size))
        return list(self.forward.logits(hidden).split([run.limit for run in runs]))


def requests_of(
    prompts: Prompt | Request | Iterable[Prompt | Request], max_tokens: int, options: Mapping[str, Any]
) -> list[Request]:
    """The requests that a caller of `generate` means. Raises SamplingError or RequestError for options of no request."""
    options = dict(options)
    stop = options.pop("stop", ())
    ignore_eos = bool(options.pop("ignore_eos", False))
    try:
        sampling = Sampling(**options)
    except TypeError:
        known = "temperature, top_k, top_p, min_p, seed, stop, ignore_eos"
        raise RequestError(f"Among {', '.join(options)} is no option of generate(); there are {known}.") from None
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    single = isinstance(prompts, str | Request) or (
        isinstance(prompts, Sequence) and bool(prompts) and isinstance(prompts[0], int)
    )
    items = [prompts] if single else list(prompts)  # type: ignore[arg-type]
    return [i if isinstance(i, Request) else Request(i, max_tokens, sampling, stop, ignore_eos) for i in items]  # type: ignore[arg-type]
