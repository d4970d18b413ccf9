"""An outcome can be read, however long what it says is: much of it follows from what a contributor wrote."""

import msgspec

from workers import protocol
from workers.protocol import (
    LEFT_OUT,
    MAX_LINE,
    MAX_OUTCOME_BYTES,
    SHORT_LINE,
    ImplementationOutcome,
    Outcome,
    PairRecord,
    Performance,
    Reason,
    decode_outcome,
    encode,
    encode_outcome,
)


def outcome_of(sentence: str, samples: int = 1, artifacts: dict[str, str] | None = None) -> Outcome:
    pairs = [
        PairRecord(
            0, "AB", "stop", {"a": 1.0}, {"a": 1.0}, {"a": [0.125] * samples}, {"a": [0.125] * samples}, (sentence,)
        )
    ]
    item = ImplementationOutcome(
        "engine/activation/x.py",
        "activation",
        "x",
        "E",
        "failed",
        [Reason("unsupported", sentence, "unit", recipe=sentence)],
        [protocol.TestReport("unit", "a", "failed", 0.1, sentence)],
        performance=Performance("inconclusive", sentence, pairs, sentinels=pairs),
        summary=sentence,
    )
    return Outcome("a", "failed", [item], [], [Reason("x", sentence)], artifacts=artifacts or {})


def test_what_is_short_stays_as_it_is() -> None:
    outcome = outcome_of("Wrong.", artifacts={"rule.json": "{}"})
    assert encode_outcome(outcome) == encode(outcome)


def test_long_sentences_are_cut_wherever_they_stand() -> None:
    read = decode_outcome(encode_outcome(outcome_of("é" * 5000)))
    item = read.implementations[0]
    assert item.performance is not None
    said = [
        read.reasons[0].sentence,
        item.reasons[0].sentence,
        item.reasons[0].recipe,
        item.tests[0].sentence,
        item.summary,
        item.performance.why,
        item.performance.pairs[0].repeated[0],
        item.performance.sentinels[0].repeated[0],
    ]
    assert {len(sentence) for sentence in said} == {MAX_LINE}
    assert all(sentence.endswith("é …") for sentence in said)


def test_of_an_outcome_that_is_too_large_the_largest_artifacts_are_left_out() -> None:
    large = {"benchmark.json": "x" * MAX_OUTCOME_BYTES, "inputs.json": "y" * 1000}
    read = decode_outcome(encode_outcome(outcome_of("Wrong.", artifacts=large)))
    assert set(read.artifacts) == {"inputs.json", LEFT_OUT}
    assert "benchmark.json" in read.artifacts[LEFT_OUT]
    assert read.implementations[0].performance is not None
    assert read.implementations[0].performance.pairs[0].base_samples


def test_and_then_its_samples() -> None:
    outcome = outcome_of("Wrong.", samples=1_000_000, artifacts={"inputs.json": "y"})
    read = decode_outcome(encode_outcome(outcome))
    performance = read.implementations[0].performance
    assert performance is not None
    assert performance.pairs[0].base == {"a": 1.0}
    assert not performance.pairs[0].base_samples
    assert not performance.sentinels[0].head_samples
    assert "samples" in read.artifacts[LEFT_OUT]


def test_and_then_the_ends_of_sentences() -> None:
    sentence = "\U0001f600" * MAX_LINE
    item = outcome_of("Wrong.").implementations[0]
    reasons = [protocol.Reason("x", sentence, recipe=sentence, next_step=sentence)] * 200
    outcome = msgspec.structs.replace(
        outcome_of("Wrong."), implementations=[msgspec.structs.replace(item, reasons=reasons)]
    )
    read = decode_outcome(encode_outcome(outcome))
    assert len(read.implementations[0].reasons) == 200
    assert len(read.implementations[0].reasons[0].sentence) == SHORT_LINE


def test_figures_that_are_no_numbers_are_left_out() -> None:
    item = outcome_of("Wrong.").implementations[0]
    figures = {"a": 1.0, "b": float("nan"), "c": float("inf")}
    outcome = msgspec.structs.replace(
        outcome_of("Wrong."), implementations=[msgspec.structs.replace(item, quality=figures, figures=figures)]
    )
    read = decode_outcome(encode_outcome(outcome)).implementations[0]
    assert read.quality == read.figures == {"a": 1.0}


def test_nothing_else_is_changed() -> None:
    outcome = outcome_of("Wrong.", samples=1_000_000, artifacts={"inputs.json": "y"})
    read = decode_outcome(encode_outcome(outcome))
    assert msgspec.structs.replace(read, artifacts={}, implementations=[]) == msgspec.structs.replace(
        outcome, artifacts={}, implementations=[]
    )
