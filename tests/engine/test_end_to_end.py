"""The end-to-end workloads measure what users feel, or say that they could not."""

import pytest

from engine.generate import Engine
from engine.workloads.end_to_end import CPU, GPU, EndToEndWorkload, measure, percentile, requests_for
from tests.engine.cast import SMALL, small_model


def test_figures_are_of_the_requests_that_were_served() -> None:
    engine = Engine(small_model(), kv_tokens=1024)
    figures = measure(engine, EndToEndWorkload("few", requests=3, prompt=20, new=6))
    assert 0 < figures.ttft_p50 <= figures.ttft_p95
    assert 0 < figures.tpot_p50 <= figures.tpot_p95
    assert figures.tokens_per_s < 6 * 3 / figures.ttft_p50
    assert figures.peak_bytes > 1 << 20


def test_a_request_that_is_not_served_is_no_measurement() -> None:
    engine = Engine(small_model(), kv_tokens=64)
    with pytest.raises(RuntimeError, match="1 of 1 requests failed: The prompt has 100 tokens"):
        measure(engine, EndToEndWorkload("too-long", requests=1, prompt=100, new=1))


def test_requests_share_what_they_are_said_to_share_and_follow_their_seed() -> None:
    workload = EndToEndWorkload("shared", requests=4, prompt=30, new=2, shared=25)
    made = [list(request.prompt) for request in requests_for(workload, SMALL.vocab, seed=3)]
    assert len({tuple(prompt[:25]) for prompt in made}) == 1
    assert len({tuple(prompt) for prompt in made}) == 4
    assert made == [list(request.prompt) for request in requests_for(workload, SMALL.vocab, seed=3)]
    assert made != [list(request.prompt) for request in requests_for(workload, SMALL.vocab, seed=4)]


def test_names_are_unique_within_a_set() -> None:
    for workloads in (CPU, GPU):
        assert len({workload.name for workload in workloads}) == len(workloads)


def test_percentiles_are_values_that_occurred() -> None:
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.95) == 4.0
    assert percentile([1.0], 0.95) == 1.0
