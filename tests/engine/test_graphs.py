"""What a CUDA graph records is right, shown without a GPU: each replay runs the recorded step again on the same buffers."""

from typing import Any

import pytest
import torch

from engine.generate import Engine, Request
from engine.runner.graphs import DecodeGraphs, padded_batch
from engine.sampler import Sampling
from tests.engine.cast import small_model, text


class Replayed(DecodeGraphs):
    """Instead of recording, keeps what to run."""

    def record(self, recorded: Any) -> None:
        graphs = self

        class Again:
            def replay(self) -> None:
                graphs.step(recorded)

        recorded.graph = Again()


def replaying(ahead: int, kv_tokens: int = 600) -> Engine:
    """An engine that decodes through graphs. sdpa, which reads lengths on the host, plans anew at each replay."""
    one = Engine(small_model(), block_size=4, kv_tokens=kv_tokens)
    one.ahead = ahead
    one.runner.graphs = Replayed(one.forward, one.runner.kv, 4, ahead)
    return one


@pytest.mark.parametrize("ahead", [1, 3, 4])
def test_decoding_ahead_of_the_host_gives_the_same_tokens(ahead: int) -> None:
    requests = [
        Request(text(n, seed=n), 5 + n, sampling)
        for n, sampling in (
            (3, Sampling()),
            (17, Sampling(temperature=0.9, seed=5)),
            (8, Sampling(temperature=1.2, seed=6, top_k=9)),
            (30, Sampling()),
            (1, Sampling(temperature=0.7, seed=7, min_p=0.05)),
        )
    ]
    plain = Engine(small_model(), block_size=4, kv_tokens=600).generate(requests)
    graphs = replaying(ahead)
    assert [c.tokens for c in graphs.generate(requests)] == [c.tokens for c in plain]
    assert graphs.pool.free == graphs.pool.capacity
    assert {key[0] for key in graphs.runner.graphs.recorded} <= {1, 2, 4, 8}  # type: ignore[union-attr]


def test_tokens_after_the_end_are_dropped() -> None:
    continued = Engine(small_model(), kv_tokens=512).generate([text(5)], max_tokens=10)[0].tokens
    model = small_model(eos=(continued[4],))
    one = replaying(4)
    one.model.config = model.config
    completion = one.generate([text(5)], max_tokens=10)[0]
    assert completion.tokens == continued[: continued.index(continued[4]) + 1]
    assert completion.finish == "stop"
    assert one.pool.free == one.pool.capacity


def test_a_full_cache_is_decoded_token_by_token() -> None:
    prompts = [text(14, seed=n) for n in range(4)]
    tight = replaying(4, kv_tokens=80)
    roomy = Engine(small_model(), block_size=4, kv_tokens=600)
    assert [c.tokens for c in tight.generate(prompts, max_tokens=20)] == [
        c.tokens for c in roomy.generate(prompts, max_tokens=20)
    ]


def test_a_graph_that_could_not_be_recorded_is_recorded_for_the_next_request() -> None:
    one = replaying(4)
    graphs = one.runner.graphs
    assert graphs is not None
    record = graphs.record

    def full(recorded: Any) -> None:
        raise torch.OutOfMemoryError("full")

    graphs.record = full  # type: ignore[method-assign]
    assert "ran out of memory" in (one.generate([text(5)], max_tokens=6)[0].error or "")
    graphs.record = record  # type: ignore[method-assign]
    wanted = Engine(small_model(), kv_tokens=512).generate([text(5)], max_tokens=6)[0]
    assert one.generate([text(5)], max_tokens=6)[0].tokens == wanted.tokens


def test_batches_are_rounded_up_to_few_sizes() -> None:
    assert [padded_batch(n) for n in (1, 2, 3, 5, 8, 9, 17, 33, 64, 65)] == [1, 2, 4, 8, 8, 10, 20, 40, 64, 80]
