"""Steps are packed, prompts are cut, the latest sequence is preempted, and everybody finishes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kv_cache import PagePool
from engine.scheduler import Scheduled, Scheduler, Sequence


def run_step(scheduler: Scheduler) -> list[Scheduled]:
    """One step, with token 7 drawn for every sequence that came to its end."""
    step = scheduler.schedule()
    scheduler.advance(step)
    for scheduled in step:
        sequence = scheduled.sequence
        if sequence.computed == len(sequence.tokens):
            sequence.tokens.append(7)
            if len(sequence.tokens) >= sequence.limit:
                scheduler.finish(sequence)
    return step


def sequence(length: int, more: int, first: int = 0) -> Sequence:
    return Sequence(list(range(first, first + length)), length + more)


def test_long_prompts_are_cut_and_decoding_goes_on_beside_them() -> None:
    scheduler = Scheduler(PagePool(100, 4), max_batch=4, step_tokens=8)
    short, long = sequence(3, 10), sequence(20, 10, first=100)
    scheduler.add(short)
    scheduler.add(long)
    news = [[(s.sequence is short, s.new) for s in run_step(scheduler)] for _ in range(4)]
    assert news == [[(True, 3), (False, 5)], [(True, 1), (False, 7)], [(True, 1), (False, 7)], [(True, 1), (False, 1)]]


def test_a_sequence_never_holds_more_than_one_page_beyond_its_tokens() -> None:
    scheduler = Scheduler(PagePool(100, 4), max_batch=8, step_tokens=16)
    for n in range(6):
        scheduler.add(sequence(3 + 5 * n, 9, first=50 * n))
    while not scheduler.idle:
        run_step(scheduler)
        for running in scheduler.running:
            assert 0 <= len(running.pages) * 4 - running.computed < 4


def test_the_latest_sequence_gives_way_and_is_computed_again() -> None:
    scheduler = Scheduler(PagePool(7, 4), max_batch=2, step_tokens=32)
    early, late = sequence(8, 12), sequence(8, 12, first=100)
    scheduler.add(early)
    scheduler.add(late)
    while not scheduler.idle:
        run_step(scheduler)
    assert (early.preemptions, late.preemptions > 0) == (0, True)
    assert late.shared == 0, "what it finds again of its own was not there when it came"
    assert (len(early.tokens), len(late.tokens)) == (20, 20)
    assert scheduler.pool.free == scheduler.pool.capacity


def test_a_prompt_that_was_served_before_is_not_computed_again() -> None:
    scheduler = Scheduler(PagePool(50, 4), max_batch=2, step_tokens=64)
    scheduler.add(sequence(18, 2))
    while not scheduler.idle:
        run_step(scheduler)
    again = sequence(18, 2)
    scheduler.add(again)
    assert [s.new for s in run_step(scheduler)] == [2]
    assert again.shared == 16


def test_reserving_ahead_stops_at_the_first_limit_and_at_the_pages() -> None:
    scheduler = Scheduler(PagePool(6, 4), max_batch=2, step_tokens=64)
    scheduler.add(sequence(4, 10))
    scheduler.add(sequence(4, 3, first=50))
    run_step(scheduler)
    step = scheduler.schedule()
    assert scheduler.reserve(step, 8) == 2
    assert all(len(s.sequence.pages) == 2 for s in step)
    held = [scheduler.pool.take() for _ in range(scheduler.pool.free)]
    assert scheduler.reserve(step, 8) == 2, "the pages that it has suffice"
    scheduler.pool.release(held)


def test_evicted_pages_are_freed_and_the_rest_keeps_its_order() -> None:
    scheduler = Scheduler(PagePool(20, 4), max_batch=1, step_tokens=64)
    only = Sequence(list(range(14)), 40, share=False)
    scheduler.add(only)
    run_step(scheduler)
    pages = list(only.pages)
    assert scheduler.evict(only, {pages[1], pages[3]}) == 1, "the last page is not full, so it stays"
    assert only.pages == [pages[0], pages[2], pages[3]]
    assert only.evicted == 4
    assert pages[1] not in only.pages
    free = scheduler.pool.free
    run_step(scheduler)
    assert scheduler.pool.free == free, "the next token goes into the page that is not full"


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12), st.integers(0, 2)), min_size=1, max_size=10),
    st.integers(11, 40),
    st.integers(4, 40),
)
def test_everybody_finishes_and_no_page_is_left_behind(
    requests: list[tuple[int, int, int]], pages: int, step_tokens: int
) -> None:
    scheduler = Scheduler(PagePool(pages + 1, 4), max_batch=4, step_tokens=step_tokens)
    everybody = [sequence(length, more, first=100 * kind) for length, more, kind in requests]
    everybody = [each for each in everybody if each.limit <= pages * 4]
    for each in everybody:
        scheduler.add(each)
    for _ in range(5000):
        if scheduler.idle:
            break
        step = run_step(scheduler)
        assert step
        assert sum(s.new for s in step) <= step_tokens
    assert scheduler.idle
    assert all(len(each.tokens) == each.limit for each in everybody)
    assert scheduler.pool.free == scheduler.pool.capacity


def test_a_pool_without_a_page_to_hand_out_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 pages"):
        PagePool(1, 4)
