"""On a GPU: recorded decode, paged kernels and overlapped launches give what the CPU gives."""

import importlib
from typing import Any

import pytest
import torch

from engine import bind
from engine.generate import Engine, EngineError, Request
from engine.loader import Random, load_model
from engine.models.config import ModelConfig
from engine.sampler import Sampling, best
from engine.slots import tiles

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CONFIG = ModelConfig(
    vocab=499, hidden=256, layers=3, q_heads=8, kv_heads=2, head_dim=32, intermediate=512, context=1024, qkv_bias=True
)
SLOTS = {"attention": "paged", "normalization": "fused", "activation": "fused"}


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """The same float32 model on the CPU and on the GPU."""
    torch.backends.cuda.matmul.allow_tf32 = False
    source = Random(CONFIG, 0, torch.float32, torch.device("cpu"))
    weights = {name: source.read(name) for name in source.names()}
    return load_model(CONFIG, weights), load_model(CONFIG, weights, device="cuda")


def prompts() -> list[list[int]]:
    return [[(13 * i + 5 * n) % CONFIG.vocab for i in range(3 + 37 * n)] for n in range(7)]


@pytest.mark.parametrize("ahead", [1, 8])
def test_recorded_decode_gives_the_tokens_of_the_cpu(pair: tuple[Any, Any], ahead: int) -> None:
    on_cpu, on_gpu = pair
    requests = [
        Request(prompt, 40, Sampling() if n % 2 else Sampling(temperature=0.8, seed=n, top_k=50 * (n == 2)))
        for n, prompt in enumerate(prompts())
    ]
    wanted = [c.tokens for c in Engine(on_cpu, kv_tokens=4096).generate(requests)]
    engine = Engine(on_gpu, SLOTS, kv_tokens=4096, block_size=16, max_batch=8, ahead=ahead)
    assert engine.runner.graphs is not None
    assert [c.tokens for c in engine.generate(requests)] == wanted


def test_logits_are_those_of_the_cpu_in_prefill_and_decode(pair: tuple[Any, Any]) -> None:
    on_cpu, on_gpu = pair
    wanted = Engine(on_cpu, kv_tokens=4096).logits(prompts())
    engine = Engine(on_gpu, SLOTS, kv_tokens=4096)
    for chunk in (None, 1, 30):
        for ours, theirs in zip(engine.logits(prompts(), chunk), wanted, strict=True):
            assert (ours.cpu() - theirs).abs().max() < 2e-5


@pytest.mark.parametrize("name", ["none", "int8wo", "int4wo", "fp8wo", "fp8_dynamic"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(512, 1024), (97, 320), (6144, 4096)])
def test_one_row_is_multiplied_as_many_are(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(shape, device="cuda", generator=generator).mul_(shape[1] ** -0.5).to(dtype)
    x = torch.randn(257, shape[1], device="cuda", generator=generator).to(dtype)
    scheme = bind.implementation("quantization", name, dtype, torch.device("cuda"))()
    packed = scheme.pack(weight)
    wanted = x.float() @ scheme.dequant(packed).T
    for rows in (1, 3, 8, 16, 17, 33, 64, 65, 130, 257):
        error = (scheme.linear(x[:rows], packed).float() - wanted[:rows]).norm() / wanted[:rows].norm()
        assert error < (0.05 if name == "fp8_dynamic" else 0.01), rows


@pytest.mark.parametrize("name", ["int8wo", "fp8wo"])
@pytest.mark.parametrize("inputs", [333, 336])
def test_bytes_are_multiplied_whatever_the_number_of_columns(name: str, inputs: int) -> None:
    scheme = bind.implementation("quantization", name, torch.bfloat16, torch.device("cuda"))()
    packed = scheme.pack(torch.randn(50, inputs, device="cuda").bfloat16())
    x = torch.randn(257, inputs, device="cuda").bfloat16()
    wanted = x.float() @ scheme.dequant(packed).T
    for rows in (1, 16, 33, 64, 65, 257):
        assert (scheme.linear(x[:rows], packed).float() - wanted[:rows]).norm() / wanted[:rows].norm() < 0.01, rows


@pytest.mark.parametrize("name", ["int8wo", "int4wo", "fp8wo"])
def test_float32_keeps_its_precision(name: str) -> None:
    scheme = bind.implementation("quantization", name, torch.float32, torch.device("cuda"))()
    packed = scheme.pack(torch.randn(97, 320, device="cuda"))
    x = torch.randn(130, 320, device="cuda")
    wanted = x @ scheme.dequant(packed).T
    for rows in (1, 33, 130):
        assert (scheme.linear(x[:rows], packed) - wanted[:rows]).norm() / wanted[:rows].norm() < 1e-5, rows


@pytest.mark.parametrize("name", ["int8wo", "int4wo", "fp8wo"])
def test_columns_that_are_shared_out_are_added_in_the_same_order(name: str) -> None:
    scheme = bind.implementation("quantization", name, torch.bfloat16, torch.device("cuda"))()
    packed = scheme.pack(torch.randn(300, 4096, device="cuda").bfloat16())
    x = torch.randn(100, 4096, device="cuda").bfloat16()
    y = scheme.linear(x, packed)
    assert all(torch.equal(y, scheme.linear(x, packed)) for _ in range(5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_unpacked_bytes_are_those_of_pytorch(kind: torch.dtype, dtype: torch.dtype) -> None:
    q = torch.randint(-127, 128, (37, 333), device="cuda").to(kind)
    scale = torch.rand(37, device="cuda").to(dtype)
    assert torch.equal(tiles.unpack_bytes(q, None, dtype), q.to(dtype))
    assert torch.equal(tiles.unpack_bytes(q, scale, dtype), q.to(dtype) * scale[:, None])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(37, 320), (5, 4096)])
def test_unpacked_int4_is_what_was_packed(shape: tuple[int, int], dtype: torch.dtype) -> None:
    scheme = bind.implementation("quantization", "int4wo", dtype, torch.device("cuda"))
    packed = scheme().pack(torch.randn(shape, device="cuda").to(dtype))
    rows = importlib.import_module(scheme.__module__).cuda_rows(packed["words"], packed["scale"], None, dtype)
    assert torch.equal(rows, scheme().dequant(packed).to(dtype))


@pytest.mark.parametrize("name", ["int8wo", "int4wo", "fp8wo", "fp8_dynamic"])
def test_float16_holds_what_large_activations_give(name: str) -> None:
    weight = torch.randn(256, 4096, device="cuda").mul_(4096**-0.5).half()
    x = torch.randn(257, 4096, device="cuda").mul_(100.0).half()
    scheme = bind.implementation("quantization", name, torch.float16, torch.device("cuda"))()
    packed = scheme.pack(weight)
    wanted = x.float() @ scheme.dequant(packed).T
    for rows in (1, 9, 70, 130, 257):
        y = scheme.linear(x[:rows], packed).float()
        assert (y - wanted[:rows]).norm() / wanted[:rows].norm() < 0.05, rows


@pytest.mark.parametrize("name", ["int8wo", "int4wo", "fp8wo", "fp8_dynamic"])
def test_rows_that_are_looked_up_are_those_of_the_weight(name: str) -> None:
    weight = torch.randn(50, 320, device="cuda").bfloat16()
    scheme = bind.implementation("quantization", name, torch.bfloat16, torch.device("cuda"))()
    packed = scheme.pack(weight)
    ids = torch.tensor([7, 49, 0, 7], device="cuda")
    assert torch.equal(scheme.embedding(ids, packed), scheme.dequant(packed)[ids].bfloat16())


def test_the_best_of_a_long_row_is_the_first_of_equals() -> None:
    logits = torch.randn(5, 128 * 1002, device="cuda").bfloat16().float()
    logits[1, [77, 100_000]] = logits[1].max() + 1
    assert best(logits).tolist() == logits.cpu().argmax(-1).tolist()


def test_the_first_request_after_an_out_of_memory_is_served(pair: tuple[Any, Any]) -> None:
    engine = Engine(pair[1], SLOTS, kv_tokens=4096)
    assert engine.runner.graphs is not None
    real = engine.runner.forward

    class Full:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda")

    wanted = Engine(pair[1], SLOTS, kv_tokens=4096).generate([[1, 2, 3]], max_tokens=6)[0].tokens
    for part in (engine.runner, engine.runner.graphs):  # in the prefill, then while the decode is recorded
        part.forward = Full()  # type: ignore[assignment]
        assert "ran out of memory" in (engine.generate([[1, 2, 3]], max_tokens=6)[0].error or "")
        part.forward = real
        assert engine.generate([[1, 2, 3]], max_tokens=6)[0].tokens == wanted
        engine.runner.graphs.recorded.clear()


def test_a_model_that_leaves_no_room_is_said_to(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (1 << 30, 80 << 30))
    with pytest.raises(EngineError, match=r"Beside the weights cuda.* has 1\.0 GiB free, too little"):
        Engine(pair[1], SLOTS)
