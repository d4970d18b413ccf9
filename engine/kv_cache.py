"""Who owns which page of the KV cache: allocation, sharing of equal prefixes, reuse. Pure bookkeeping, no tensors.

A page (block) holds `block_size` tokens of every layer. Page 0 is never handed out: padding writes there.
"""

from collections import OrderedDict
from collections.abc import Sequence

Prefix = tuple[int, tuple[int, ...]]


class OutOfPages(Exception):
    """No page is free; the scheduler preempts, so this does not reach callers of the engine."""


class PagePool:
    """Pages with reference counts. A full page may be published under its tokens and found again by a later prompt.

    A published page that nobody uses stays findable until the space is needed; the one released longest ago goes first.
    """

    def __init__(self, pages: int, block_size: int) -> None:
        if pages < 2:
            raise ValueError(f"A KV cache needs at least 2 pages (one is padding); got {pages}.")
        self.block_size = block_size
        self.capacity = pages - 1
        self._users = [0] * pages
        self._unused: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, pages))
        # A prefix is (identity of the page before it, tokens of this page): equality is exact and costs one page.
        # Pages of equal content after equal pages have the same identity; 0 means that a page is not yet full.
        self._identity = [0] * pages
        self._next_identity = 1
        self._published: dict[Prefix, int] = {}
        self._prefix_of: dict[int, Prefix] = {}

    @property
    def free(self) -> int:
        """Pages that can be taken now."""
        return len(self._unused)

    def take(self) -> int:
        """A page for one user. Raises OutOfPages."""
        if not self._unused:
            raise OutOfPages
        page, _ = self._unused.popitem(last=False)
        prefix = self._prefix_of.pop(page, None)
        if prefix is not None:
            del self._published[prefix]
        self._users[page] = 1
        self._identity[page] = 0
        return page

    def release(self, pages: Sequence[int]) -> None:
        """Gives up one use of each page. Later pages become reusable first: they serve fewer future prompts."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page] == 0:
                self._unused[page] = None
                if page not in self._prefix_of:
                    self._unused.move_to_end(page, last=False)

    def publish(self, page: int, before: int, tokens: Sequence[int]) -> None:
        """Makes a full, computed page findable: it holds `tokens`, after the page `before` (0 for the first page)."""
        prefix = (self._identity[before], tuple(tokens))
        if self._identity[page] or (before and not self._identity[before]):
            return
        if prefix in self._published:
            self._identity[page] = self._identity[self._published[prefix]]
            return
        self._identity[page] = self._next_identity
        self._next_identity += 1
        self._published[prefix] = page
        self._prefix_of[page] = prefix

    def share(self, tokens: Sequence[int]) -> list[int]:
        """Takes a use of every published page that `tokens` starts with, and returns them in order.

        At least one token is left out, since a step must compute something to have logits.
        """
        shared: list[int] = []
        identity = 0
        for start in range(0, len(tokens) - self.block_size, self.block_size):
            page = self._published.get((identity, tuple(tokens[start : start + self.block_size])))
            if page is None:
                break
            if self._users[page] == 0:
                del self._unused[page]
            self._users[page] += 1
            shared.append(page)
            identity = self._identity[page]
        return shared
