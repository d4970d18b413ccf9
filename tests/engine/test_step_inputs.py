"""The inputs of a step that counts on in those of the step before are those of a step built anew."""

from dataclasses import fields

import pytest
import torch

from engine.runner.inputs import StepInputs
from engine.scheduler import Scheduled, Sequence
from engine.slots.attention import StepMeta

CPU = torch.device("cpu")


def sequence(tokens: int, pages: list[int]) -> Sequence:
    return Sequence(tokens=list(range(100, 100 + tokens)), limit=1000, pages=pages)


def assert_as_built_anew(inputs: StepInputs, step: list[Scheduled]) -> None:
    ids, meta = inputs.of(step)
    fresh_ids, fresh = StepInputs(inputs.block_size, CPU).of(step)
    assert torch.equal(ids, fresh_ids)
    for name in (field.name for field in fields(StepMeta)):
        got, expected = getattr(meta, name), getattr(fresh, name)
        same = torch.equal(got, expected) if isinstance(got, torch.Tensor) else got == expected
        assert same, f"{name}: {got} instead of {expected}"


def decode(inputs: StepInputs, sequences: list[Sequence], steps: int) -> None:
    for _ in range(steps):
        step = [Scheduled(each, 1) for each in sequences]
        for each in sequences:
            each.tokens.append(7 * len(each.tokens) % 1000)
            if (each.computed - each.evicted) // inputs.block_size == len(each.pages):
                each.pages.append(40 + len(each.pages))
        assert_as_built_anew(inputs, step)
        for each in sequences:
            each.computed += 1


@pytest.mark.parametrize("batch", [1, 3])
def test_decoding_over_pages(batch: int) -> None:
    inputs = StepInputs(4, CPU)
    sequences = [sequence(5 + row, [9 * row + 1, 9 * row + 2, 9 * row + 3]) for row in range(batch)]
    assert_as_built_anew(inputs, [Scheduled(each, len(each.tokens)) for each in sequences])
    for each in sequences:
        each.computed = len(each.tokens)
    decode(inputs, sequences, 14)


def test_steps_of_others_in_between_and_another_order() -> None:
    inputs = StepInputs(8, CPU)
    one, two = sequence(3, [1]), sequence(4, [2])
    one.computed, two.computed = 3, 4
    decode(inputs, [one, two], 1)
    decode(inputs, [two, one], 2)
    decode(inputs, [one], 1)
    decode(inputs, [two], 1)
    assert_as_built_anew(inputs, [Scheduled(sequence(5, [3]), 5)])
    decode(inputs, [two], 1)


def test_a_sequence_that_was_let_go_of_in_part_or_begun_again() -> None:
    inputs = StepInputs(4, CPU)
    one = sequence(9, [1, 2, 3])
    one.computed = 9
    decode(inputs, [one], 1)
    one.evicted, one.pages = 4, [2, 3]
    decode(inputs, [one], 1)
    # Were it computed anew elsewhere, the next length could come in other pages.
    one.pages = [7, 8]
    decode(inputs, [one], 1)


def test_the_tensors_are_counted_on_and_not_made_anew() -> None:
    inputs = StepInputs(16, CPU)
    one = sequence(3, [1])
    one.computed = 3
    one.tokens.append(5)
    first = inputs.of([Scheduled(one, 1)])[0].data_ptr()
    one.computed += 1
    one.tokens.append(6)
    assert inputs.of([Scheduled(one, 1)])[0].data_ptr() == first
