"""One row times a matrix, divided among threads."""

from collections.abc import Iterator

import pytest
import torch

from engine.models import transformer
from engine.models.transformer import DENSE, multiply_row


@pytest.fixture(params=[1, 2, 3, 4])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=[True, False], autouse=True)
def mkl_at_home(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways are right on any processor; which is fast depends on its vendor."""
    monkeypatch.setattr(transformer, "MKL_AT_HOME", request.param)


@pytest.mark.parametrize("rows", [1, 7, 250, 256, 257, 4096])
@pytest.mark.parametrize("columns", [1, 64, 300])
def test_it_is_the_product(threads: int, rows: int, columns: int) -> None:
    weight, x = torch.randn(rows, columns), torch.randn(1, columns)
    expected = (x.double() @ weight.double().T).float()
    assert multiply_row(x, weight).shape == (1, rows)
    torch.testing.assert_close(multiply_row(x, weight), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(DENSE.linear(x, {"weight": weight}), expected, rtol=1e-5, atol=1e-4)


def test_weights_that_do_not_lie_in_rows(threads: int) -> None:
    weight, x = torch.randn(64, 256).T, torch.randn(1, 64)
    torch.testing.assert_close(multiply_row(x, weight), x @ weight.T, rtol=1e-5, atol=1e-4)


def test_gradients_flow(threads: int) -> None:
    weight, x = torch.randn(256, 32, requires_grad=True), torch.randn(1, 32, requires_grad=True)
    multiply_row(x, weight).square().sum().backward()
    got = weight.grad, x.grad
    weight.grad = x.grad = None
    torch.nn.functional.linear(x, weight).square().sum().backward()
    torch.testing.assert_close(got, (weight.grad, x.grad), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "threads", "shares"), [(256, 2, 2), (256, 3, 2), (257, 2, 1), (250, 4, 2), (96, 2, 1), (4096, 48, 32)]
)
def test_shares_are_equal_and_not_too_small(rows: int, threads: int, shares: int) -> None:
    assert transformer._shares(rows, threads) == shares
