"""Which sequences advance in a step, and by how many tokens: continuous batching with chunked prefill.

A step has room for `step_tokens`. Running sequences go first, so decoding never waits for prefill; what is left goes to
prompts, in order of arrival, cut into chunks. Where pages run out, the latest sequence gives its pages back and is
computed again later (preemption by recompute). Pure bookkeeping, no tensors.
"""

from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from engine.kv_cache import PagePool
from engine.sampler import Sampling

_numbers = count()


@dataclass(eq=False)
class Sequence:
    """One prompt and what was generated for it.

    The cache holds the first `computed` of `tokens`, less the `evicted` ones that the attention slot let go of.
    """

    tokens: list[int]
    limit: int
    """Length at which it ends: prompt and generated tokens."""
    sampling: Sampling = field(default_factory=Sampling)
    share: bool = True
    """Whether it may start from, and leave behind, pages shared with equal prefixes."""
    number: int = field(default_factory=lambda: next(_numbers))
    prompt: int = 0
    computed: int = 0
    evicted: int = 0
    shared: int = 0
    """Tokens of the prompt that were found in the cache when it was first admitted."""
    published: int = 0
    preemptions: int = 0
    pages: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prompt = len(self.tokens)

    @property
    def generated(self) -> int:
        """Number of tokens generated so far."""
        return len(self.tokens) - self.prompt


class Scheduled(NamedTuple):
    """A sequence and how many tokens of it this step computes."""

    sequence: Sequence
    new: int

    @property
    def samples(self) -> bool:
        """Whether the step computes its last token, so that a next one can be drawn."""
        return self.sequence.computed + self.new == len(self.sequence.tokens)


class Scheduler:
    """Holds the sequences that wait and those that run."""

    def __init__(self, pool: PagePool, max_batch: int, step_tokens: int) -> None:
        self.pool = pool
        self.max_batch = max_batch
        self.step_tokens = step_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Appends to those that wait. The caller has checked that the sequence can fit the whole cache."""
        self.waiting.append(sequence)

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.waiting or self.running)

    def schedule(self, chunk: int | None = None) -> list[Scheduled]:
        """The next step, its pages taken; empty only if idle. `chunk` bounds the new tokens of each sequence."""
        budget = self.step_tokens
        chunk = chunk or budget
        step: list[Scheduled] = []
        preempted = False
        index = 0
        while index < len(self.running) and budget > 0:
            sequence = self.running[index]
            new = min(len(sequence.tokens) - sequence.computed, budget, chunk)
            while not self.grow(sequence, new):
                victim = self.running[-1]
                self._preempt(victim)
                preempted = True
                if victim is sequence:
                    break
            else:
                step.append(Scheduled(sequence, new))
                budget -= new
                index += 1
        while self.waiting and not preempted and len(self.running) < self.max_batch and budget > 0:
            sequence = self.waiting[0]
            if not sequence.pages and sequence.share:
                sequence.pages = self.pool.share(sequence.tokens)
                sequence.computed = sequence.published = len(sequence.pages) * self.pool.block_size
                if not sequence.preemptions:
                    sequence.shared = sequence.computed
            new = min(len(sequence.tokens) - sequence.computed, budget, chunk)
            # One page is left to each running sequence, else admitting a prompt would soon preempt it again.
            if self._pages_missing(sequence, new) + len(self.running) > self.pool.free and self.running:
                self._surrender(sequence)
                break
            if not self.grow(sequence, new):
                self._surrender(sequence)
                break
            self.waiting.popleft()
            self.running.append(sequence)
            step.append(Scheduled(sequence, new))
            budget -= new
        return step

    def reserve(self, step: list[Scheduled], ahead: int) -> int:
        """Takes pages so that every sequence of a decode step can go on; returns for how many tokens, from 1 to `ahead`."""
        ahead = min(ahead, *(s.sequence.limit - len(s.sequence.tokens) for s in step), self.pool.block_size)
        if ahead <= 1 or sum(self._pages_missing(s.sequence, ahead) for s in step) > self.pool.free:
            return 1
        for scheduled in step:
            self.grow(scheduled.sequence, ahead)
        return ahead

    def advance(self, step: list[Scheduled]) -> None:
        """Records that a step was computed, and publishes the pages that became full."""
        size = self.pool.block_size
        for scheduled in step:
            sequence = scheduled.sequence
            sequence.computed += scheduled.new
            if not sequence.share or sequence.evicted:
                continue
            while sequence.published + size <= sequence.computed:
                index = sequence.published // size
                before = sequence.pages[index - 1] if index else 0
                tokens = sequence.tokens[sequence.published : sequence.published + size]
                self.pool.publish(sequence.pages[index], before, tokens)
                sequence.published += size

    def evict(self, sequence: Sequence, pages: set[int]) -> int:
        """Frees full pages of `sequence` that its attention no longer needs; returns how many."""
        size = self.pool.block_size
        full = (sequence.computed - sequence.evicted) // size
        gone = [page for page in sequence.pages[:full] if page in pages]
        sequence.pages = [page for page in sequence.pages[:full] if page not in pages] + sequence.pages[full:]
        sequence.evicted += len(gone) * size
        self.pool.release(gone)
        return len(gone)

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and releases its pages."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.pool.release(sequence.pages)
        sequence.pages = []

    def _pages_missing(self, sequence: Sequence, new: int) -> int:
        held = sequence.computed - sequence.evicted + new
        return -(-held // self.pool.block_size) - len(sequence.pages)

    def grow(self, sequence: Sequence, new: int) -> bool:
        """Takes the pages that `new` more tokens need; False, and none taken, where there are not so many."""
        missing = self._pages_missing(sequence, new)
        if missing <= 0:
            return True
        if missing > self.pool.free:
            return False
        for _ in range(missing):
            sequence.pages.append(self.pool.take())
        return True

    def _surrender(self, sequence: Sequence) -> None:
        self.pool.release(sequence.pages)
        sequence.pages = []
        sequence.computed = sequence.evicted = sequence.published = 0

    def _preempt(self, sequence: Sequence) -> None:
        self._surrender(sequence)
        sequence.preemptions += 1
        self.running.remove(sequence)
        self.waiting.appendleft(sequence)
