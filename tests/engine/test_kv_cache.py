"""Pages are owned, shared, reused and never lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.kv_cache import OutOfPages, PagePool


def fill(pool: PagePool, tokens: list[int]) -> list[int]:
    """What a sequence of `tokens` does from admission to the publication of its full pages."""
    pages = pool.share(tokens)
    size = pool.block_size
    while len(pages) * size < len(tokens):
        pages.append(pool.take())
    for index in range(len(tokens) // size):
        before = pages[index - 1] if index else 0
        pool.publish(pages[index], before, tokens[index * size : (index + 1) * size])
    return pages


def test_page_zero_is_padding_and_never_handed_out() -> None:
    pool = PagePool(5, 4)
    assert sorted(pool.take() for _ in range(4)) == [1, 2, 3, 4]
    with pytest.raises(OutOfPages):
        pool.take()


def test_equal_prefixes_share_their_full_pages() -> None:
    pool = PagePool(20, 4)
    first = fill(pool, list(range(10)))
    second = fill(pool, [*range(8), 99, 98])
    assert second[:2] == first[:2]
    assert second[2] != first[2]
    assert pool.free == 19 - 4


def test_a_prefix_that_differs_early_shares_nothing_later() -> None:
    pool = PagePool(20, 4)
    first = fill(pool, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    second = fill(pool, [0, 2, 3, 4, 5, 6, 7, 8, 9])
    assert not set(first) & set(second)


def test_the_last_token_is_always_left_to_compute() -> None:
    pool = PagePool(20, 4)
    first = fill(pool, list(range(8)))
    assert pool.share(list(range(8))) == first[:1]


def test_released_pages_are_found_again_until_they_are_needed() -> None:
    pool = PagePool(5, 4)
    first = fill(pool, list(range(8)))
    pool.release(first)
    assert pool.free == 4
    assert fill(pool, [*range(8), 50])[:2] == first
    others = [pool.take()]
    with pytest.raises(OutOfPages):
        pool.take()
    pool.release(others)


def test_unpublished_pages_are_reused_before_published_ones() -> None:
    pool = PagePool(4, 4)
    kept = fill(pool, list(range(9)))
    pool.release(kept)
    assert pool.take() == kept[2]
    assert pool.take() == kept[1], "of a prefix, the end goes first"


def test_pages_of_equal_content_continue_each_other() -> None:
    pool = PagePool(20, 4)
    one, two = [pool.take(), pool.take()], [pool.take(), pool.take()]
    for pages in (one, two):  # computed side by side, so neither could share
        pool.publish(pages[0], 0, range(4))
        pool.publish(pages[1], pages[0], range(4, 8))
    pool.release(one)
    assert len(pool.share([*range(8), 9])) == 2


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 1), min_size=1, max_size=12)), max_size=60))
def test_no_page_is_lost_or_owned_twice(actions: list[tuple[int, list[int]]]) -> None:
    pool = PagePool(12, 2)
    held: list[tuple[list[int], list[int]]] = []
    for action, tokens in actions:
        if action and pool.free >= len(tokens):
            held.append((tokens, fill(pool, tokens)))
        elif held:
            pool.release(held.pop(0)[1])
        content: dict[int, tuple[int, ...]] = {}
        for tokens, pages in held:
            assert 0 not in pages
            for index, page in enumerate(pages):
                prefix = tuple(tokens[: 2 * index + 2])
                assert content.setdefault(page, prefix) == prefix, "two sequences share a page of different content"
        assert pool.free == pool.capacity - len(content)
