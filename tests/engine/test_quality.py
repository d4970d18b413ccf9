"""Quality from logits: the arithmetic against closed forms, intervals that cover, classes that follow the table."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from engine import quality
from engine.quality import LIMITS, Measure, Needle, Quality


def made_up(ppl: float, kl: float, top1: float) -> Quality:
    """A quality without doubt."""
    return Quality(Measure(ppl, ppl, ppl), Measure(kl, kl, kl), Measure(top1, top1, top1), 10.0, 1000)


class Fixed:
    """A scorer that gives each text its own logits, slightly other ones in chunks."""

    def __init__(self, vocabulary: int, noise: float = 0.0, shift: float = 0.0) -> None:
        self.vocabulary, self.noise, self.shift = vocabulary, noise, shift

    def logits(self, texts: Sequence[Sequence[int]], chunk: int | None = None) -> list[Tensor]:
        found = []
        for text in texts:
            generator = torch.Generator().manual_seed(sum(text))
            base = 3 * torch.randn(len(text), self.vocabulary, generator=generator)
            extra = torch.randn(base.shape, generator=generator)
            found.append(base + extra * (self.shift + (self.noise if chunk else 0.0)))
        return found


def texts(count: int, length: int, vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(vocabulary, (length,), generator=generator).tolist() for _ in range(count)]


def test_the_same_logits_change_nothing() -> None:
    given = texts(3, 100, 50)
    logits = Fixed(50).logits(given)
    found = quality.compare(logits, logits, given)
    assert found.delta_ppl == Measure(0.0, 0.0, 0.0)
    assert found.mean_kl.value == 0.0
    assert found.top1.value == 1.0
    assert 0.98 < found.top1.low < 1.0
    assert found.tokens == 3 * 99


def test_kl_and_perplexity_have_their_closed_forms() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.25, 0.25])
    text = [0, 1] * 100
    found = quality.compare([p.log().expand(200, 3)], [q.log().expand(200, 3)], [text])
    assert found.mean_kl.value == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)
    ones, zeros = 100, 99
    nll_p = -(ones * math.log(0.2) + zeros * math.log(0.7)) / 199
    nll_q = -(ones * math.log(0.25) + zeros * math.log(0.5)) / 199
    assert found.perplexity == pytest.approx(math.exp(nll_p), rel=1e-5)
    assert found.delta_ppl.value == pytest.approx(math.exp(nll_q - nll_p) - 1, rel=1e-4)


def test_only_scored_tokens_count() -> None:
    text = [0, 1, 1, 0]
    right = torch.tensor([[0.0, 5.0], [0.0, 5.0], [5.0, 0.0], [0.0, 0.0]])
    wrong = right.clone()
    wrong[1] = torch.tensor([9.0, 0.0])
    scored = torch.tensor([False, True, False, True])
    found = quality.compare([right], [wrong], [text], [scored])
    assert found.tokens == 2
    assert found.top1.value == 1.0
    everything = quality.compare([right], [wrong], [text])
    assert everything.top1.value == pytest.approx(2 / 3)


def test_logits_that_are_not_finite_are_named() -> None:
    text = [0, 1, 0]
    logits = torch.zeros(3, 2)
    broken = logits.clone()
    broken[1, 0] = float("nan")
    with pytest.raises(ValueError, match="after 2 tokens are not finite"):
        quality.compare([logits], [broken], [text])
    with pytest.raises(ValueError, match="No token was scored"):
        quality.compare([logits], [logits], [text], [torch.zeros(3, dtype=torch.bool)])


def test_block_intervals_cover_what_they_should() -> None:
    generator = torch.Generator().manual_seed(3)
    covered = 0
    for _ in range(300):
        # Neighbouring tokens share most of their noise, as in text.
        noise = torch.randn(960 // 16, generator=generator).repeat_interleave(16)
        found = quality.block_interval([noise[:500], noise[500:]])
        covered += found.low <= 0.0 <= found.high
    assert 270 <= covered <= 300


def test_student_quantiles() -> None:
    assert quality.student_quantile(2) == pytest.approx(4.303, rel=0.02)
    assert quality.student_quantile(10) == pytest.approx(2.228, rel=1e-3)
    assert quality.student_quantile(1000) == pytest.approx(1.962, rel=1e-3)


def test_the_noise_floor_is_what_another_order_changes() -> None:
    given = texts(4, 80, 40)
    assert quality.noise_floor(Fixed(40), given) == 0.0
    assert 1e-6 < quality.noise_floor(Fixed(40, noise=0.01), given) < 1e-3


@pytest.mark.parametrize(
    ("found", "needle", "met"),
    [
        (made_up(0.0, 0.0, 1.0), None, ("E", "Q8", "Q4")),
        (made_up(0.0, 0.0, 1.0), 1.0, ("E", "Q8", "Q4", "S")),
        (made_up(-0.01, 0.0, 1.0), None, ("E", "Q8", "Q4")),
        (made_up(0.002, 0.0, 1.0), None, ("Q8", "Q4")),
        (made_up(0.0, 0.009, 0.99), None, ("Q8", "Q4")),
        (made_up(0.0, 0.009, 0.97), None, ("Q4",)),
        (made_up(0.06, 0.07, 0.94), None, ("Q4",)),
        (made_up(0.07, 0.07, 0.94), None, ()),
        (made_up(0.009, 0.015, 0.985), 0.96, ("Q4", "S")),
        (made_up(0.009, 0.015, 0.985), 0.90, ("Q4",)),
        (made_up(math.nan, 0.0, 1.0), None, ()),
    ],
)
def test_classes_follow_the_table(found: Quality, needle: float | None, met: tuple[str, ...]) -> None:
    assert quality.classes_met(found, 1e-5, needle) == met


def test_class_e_is_measured_against_the_noise_floor() -> None:
    found = made_up(0.0, 3e-5, 1.0)
    assert "E" in quality.classes_met(found, 2e-5)
    assert "E" not in quality.classes_met(found, 1e-5)
    assert quality.kl_limit("E", 0.0) == 2 * quality.LEAST_NOISE


def test_shortfalls_say_what_is_missing_and_how_sure_that_is() -> None:
    found = Quality(Measure(0.02, 0.01, 0.03), Measure(0.05, 0.04, 0.06), Measure(0.97, 0.96, 0.975), 9.0, 5000)
    sentences = quality.shortfalls("Q8", found, 1e-5)
    assert "perplexity rises by 2.000% (1.000% to 3.000%); allowed is 1.2%, though the interval" in sentences[0]
    assert sentences[1] == "mean KL is 0.05 nats (0.04 to 0.06); allowed is 0.01"
    assert sentences[2] == "top-1 agreement is 97.00% (96.00% to 97.50%); needed is 98.0%"
    assert quality.shortfalls("Q4", found, 1e-5) == []
    assert "in its worst cell needle recall is 90%" in quality.shortfalls("S", found, 1e-5, 0.9)[-1]


def test_needles_are_found_where_every_answer_token_is_the_most_likely() -> None:
    class Parrot:
        """Says what `answers` holds for the length of the text so far, else token 0."""

        def __init__(self, answers: dict[int, int]) -> None:
            self.answers = answers

        def logits(self, given: Sequence[Sequence[int]], chunk: int | None = None) -> list[Tensor]:
            out = []
            for text in given:
                rows = torch.zeros(len(text), 10)
                for row in range(len(text)):
                    rows[row, self.answers.get(row + 1, 0)] = 1.0
                out.append(rows)
            return out

    needles = [Needle(4, 0.5, [1, 2, 3, 4], [7, 8]), Needle(5, 0.5, [1, 2, 3, 4, 5], [7, 8])]
    seen: list[tuple[int, int]] = []
    ours = quality.needle_recall(Parrot({4: 7, 5: 8}), needles, lambda done, total: seen.append((done, total)))
    assert ours == {(4, 0.5): 1.0, (5, 0.5): 0.0}
    assert seen == [(0, 2), (1, 2), (2, 2)]
    assert quality.worst_cell(ours, ours) == ((4, 0.5), 1.0)
    assert quality.worst_cell({(4, 0.5): 1.0, (5, 0.5): 0.5}, {(4, 0.5): 1.0, (5, 0.5): 0.25}) == ((5, 0.5), 0.5)
    assert quality.worst_cell({(4, 0.5): 0.0}, {(4, 0.5): 0.0}) == ((4, 0.5), 1.0)


def test_measuring_two_scorers_is_comparing_their_logits() -> None:
    given = texts(3, 70, 30)
    ours, theirs = Fixed(30), Fixed(30, shift=0.05)
    assert quality.measure(ours, theirs, given) == quality.compare(ours.logits(given), theirs.logits(given), given)
    assert quality.measure(ours, theirs, given).mean_kl.value > 0


def test_the_strictest_class_comes_first() -> None:
    assert list(LIMITS) == ["E", "Q8", "Q4", "S"]
    assert LIMITS["E"].delta_ppl < LIMITS["Q8"].delta_ppl < LIMITS["Q4"].delta_ppl
