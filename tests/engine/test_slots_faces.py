"""One weight for the score and another for the clock: what the quality model's are stored as is what timed ones have to be."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from engine.slots.inprocess import InProcess
from engine.slots.kind import Case, Environment, kind_named
from engine.slots.kinds import quantization
from engine.slots.kinds.quantization import (
    BITS,
    FACES,
    FACES_FEWER,
    STORED_ERROR,
    QuantizationKind,
    RemoteQuantization,
    counted_bytes,
)
from tests.engine.judging import header


class Rounded:
    """Weights in `bits`, a scale for each group of 32; `noise`: how much coarser it says that they are, as a share."""

    bits = 8
    noise = 0.0

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        groups = weight.float().unflatten(1, (-1, 32))
        scale = groups.abs().amax(-1) / (2 ** (self.bits - 1) - 1)
        return {"q": (groups / scale[..., None]).round_().to(torch.int8).flatten(1), "scale": scale}

    def stored(self, packed: dict[str, Tensor]) -> Tensor:
        return (packed["q"].float().unflatten(1, (-1, 32)) * packed["scale"][..., None]).flatten(1)

    def linear(self, x: Tensor, packed: dict[str, Tensor]) -> Tensor:
        return functional.linear(x, self.stored(packed))

    def dequant(self, packed: dict[str, Tensor]) -> Tensor:
        stored = self.stored(packed)
        return stored + self.noise * stored.square().mean().sqrt() * torch.randn_like(stored)


class InFour(Rounded):
    bits = 4


class Noisy(Rounded):
    noise = 0.1


def figures(implementation: type[Any]) -> dict[str, float]:
    """Those of a model of three weights."""
    torch.manual_seed(0)
    proxy = RemoteQuantization(InProcess(kind_named("quantization"), implementation))
    for size in ((96, 64), (64, 128), (256, 64)):
        proxy.pack(torch.randn(*size))
    return QuantizationKind().figures_of_model(proxy)


def a_case() -> Case:
    cases = kind_named("quantization").cases(
        "performance", header("quantization", "Q8"), Environment("x", "cpu", ("float32",))
    )
    return next(iter(cases))


def test_a_module_does_not_say_itself_how_coarse_its_model_is() -> None:
    """8 bits that unpack to something ten times as far off are no excuse for 4 that are timed: quality would have suffered."""
    kind = QuantizationKind()
    honest, noisy, timed = figures(Rounded), figures(Noisy), figures(InFour)
    assert noisy[STORED_ERROR] > 10 * honest[STORED_ERROR]
    # Of the timed ones no more bits are counted than of the model's: that they are fewer is another matter.
    timed = timed | {BITS: honest[BITS]}
    assert kind.two_faced(a_case(), noisy, timed) is None
    as_bad_as = honest[STORED_ERROR]
    for model in (honest, kind.borne_out(honest, as_bad_as), kind.borne_out(noisy, as_bad_as)):
        finding = kind.two_faced(a_case(), model, timed)
        assert finding is not None
        assert "Sizes must not decide" in finding.sentence
        assert kind.two_faced(a_case(), model, figures(Rounded)) is None
    four = figures(InFour)
    # Rounding costs a model somewhat less than noise of the same size does.
    assert kind.borne_out(four, 0.6 * four[STORED_ERROR]) == four
    assert kind.two_faced(a_case(), four, timed) is None
    assert kind.borne_out({}, 0.1) == {}


def test_weights_are_disturbed_by_a_share_of_the_size_of_their_rows() -> None:
    sizes = torch.tensor([1.0, 10.0, 100.0])[:, None]
    weight = sizes * torch.randn(3, 4096, generator=torch.Generator().manual_seed(1))
    off = QuantizationKind().disturbed(0.05, torch.Generator().manual_seed(2))
    packed = off.pack(weight)
    errors = (off.dequant(packed) - weight).square().mean(1).sqrt() / weight.square().mean(1).sqrt()
    assert errors.tolist() == pytest.approx([0.05] * 3, rel=0.05)
    x = torch.randn(2, 4096)
    assert torch.equal(off.linear(x, packed), x @ packed["weight"].T)
    assert kind_named("attention").disturbed(0.05, torch.Generator()) is None
    assert kind_named("attention").borne_out({"a": 1.0}, 0.0) == {"a": 1.0}


@pytest.mark.parametrize(
    ("bits", "times", "refused"),
    [
        # What each matrix keeps besides weighs less where it is large; then it is no coarser.
        (4.3, 1.2, False),
        (4.3, 0.99 * FACES_FEWER, False),
        (4.3, 1.01 * FACES_FEWER, True),
        (5.8, 0.99 * FACES, False),
        (5.8, 1.01 * FACES, True),
    ],
)
def test_fewer_bits_must_not_be_coarser(bits: float, times: float, refused: bool) -> None:
    model = {BITS: 5.8, STORED_ERROR: 0.08}
    timed = {BITS: bits, STORED_ERROR: times * 0.08}
    assert (QuantizationKind().two_faced(a_case(), model, timed) is not None) is refused


def test_what_is_stored_as_it_comes_has_no_error_in_either() -> None:
    nothing = {BITS: 32.0, STORED_ERROR: 0.0}
    assert QuantizationKind().two_faced(a_case(), nothing, nothing) is None
    assert QuantizationKind().two_faced(a_case(), nothing, nothing | {STORED_ERROR: 0.01}) is not None
    assert QuantizationKind().two_faced(a_case(), {}, nothing) is None


def test_weights_in_16_bits_are_as_exact_as_16_bits_are() -> None:
    """Those of a model that was trained in them are exact."""
    exact, timed = {BITS: 16.0, STORED_ERROR: 0.0}, {BITS: 16.0, STORED_ERROR: 0.0017}
    assert QuantizationKind().two_faced(a_case(), exact, timed) is None
    assert QuantizationKind().two_faced(a_case(), exact, timed | {STORED_ERROR: 0.01}) is not None
    assert QuantizationKind().two_faced(a_case(), exact, timed | {BITS: 12.0}) is not None


def test_on_a_cpu_each_byte_counts() -> None:
    weight = torch.randn(8, 64)
    assert counted_bytes(torch.zeros(8, 2), weight) == 64
    assert counted_bytes(torch.zeros(8, 64, dtype=torch.int8), weight) == 512


def test_what_counts_as_16_bits_holds_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes under the name of scales, which count half on an accelerator, are codes no longer there."""

    class CodesAsScales(Rounded):
        def pack(self, weight: Tensor) -> dict[str, Tensor]:
            packed = super().pack(weight)
            return packed | {"q": packed["q"].view(torch.float32)}

        def stored(self, packed: dict[str, Tensor]) -> Tensor:
            return super().stored(packed | {"q": packed["q"].view(torch.int8)})

    def on_an_accelerator(tensor: Tensor, weight: Tensor) -> bool:
        return tensor.dtype == torch.float32 and tensor.numel() < weight.numel()

    monkeypatch.setattr(quantization, "follows_dtype", on_an_accelerator)
    weight, x = torch.randn(96, 64), torch.randn(4, 64)
    wanted = x @ weight.T
    for implementation, right in ((Rounded, True), (CodesAsScales, False)):
        proxy = RemoteQuantization(InProcess(kind_named("quantization"), implementation))
        packed = proxy.pack(weight)
        product = proxy.linear(x, packed)
        assert (float((product - wanted).norm() / wanted.norm()) < 0.02) is right
        assert counted_bytes(packed["scale"], weight) == 96 * 2 * 2
    # What is stored whole is counted by the dtype of cases in `two_faced`.
    assert counted_bytes(weight, weight) == weight.nbytes
