"""The engine computes what transformers computes, for every family, in prefill and in decode through the paged cache."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.generate import Engine
from engine.loader import load_model

transformers = pytest.importorskip("transformers", reason="parity is against transformers, a test dependency")

TOLERANCE = 1e-5
SIZES = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500000.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1000000.0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-2": ("Llama", {"num_key_value_heads": 4}),
    "llama-3.1": ("Llama", {"num_key_value_heads": 2, "rope_parameters": LLAMA3}),
    "llama-3.2-tied": ("Llama", {"num_key_value_heads": 1, "rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-linear-biases": (
        "Llama",
        {
            "num_key_value_heads": 2,
            "attention_bias": True,
            "mlp_bias": True,
            "head_dim": 32,
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        },
    ),
    "mistral-window": ("Mistral", {"num_key_value_heads": 2, "sliding_window": 24}),
    "mistral-no-window": ("Mistral", {"num_key_value_heads": 2, "sliding_window": None, "head_dim": 24}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen2.5-yarn": ("Qwen2", {"num_key_value_heads": 2, "rope_parameters": YARN}),
    "qwen2-some-windows": (
        "Qwen2",
        {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 32}),
    "qwen3-yarn-mscale": (
        "Qwen3",
        {"num_key_value_heads": 2, "head_dim": 16, "rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 1.1}},
    ),
}


def original(family: str) -> Any:
    """transformers' model with random weights: norms and biases too, since ones and zeros would hide mistakes."""
    name, options = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**SIZES, **options, max_position_embeddings=256)
    torch.manual_seed(7)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            if tensor.ndim == 1:
                tensor.normal_(1.0 if "norm" in key else 0.0, 0.2)
            else:
                tensor.mul_(3.0)
    return model


@pytest.fixture(params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path: Any) -> tuple[Any, Any]:
    theirs = original(request.param)
    theirs.save_pretrained(tmp_path)
    return theirs, load_model(tmp_path)


def texts(vocab: int = 131) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, vocab, (n,), generator=generator).tolist() for n in (1, 90, 37, 64)]


def largest_error(got: list[torch.Tensor], theirs: Any) -> float:
    with torch.inference_mode():
        wanted = [theirs(torch.tensor([text])).logits[0] for text in texts()]
    for one, other in zip(got, wanted, strict=True):
        assert one.shape == other.shape
    assert max(other.abs().max().item() for other in wanted) > 0.1
    return max((one - other).abs().max().item() for one, other in zip(got, wanted, strict=True))


def test_prefill_and_decode_have_the_logits_of_transformers(pair: tuple[Any, Any]) -> None:
    theirs, model = pair
    engine = Engine(model, block_size=8, step_tokens=70, kv_tokens=256)
    assert largest_error(engine.logits(texts()), theirs) <= TOLERANCE
    assert largest_error(engine.logits(texts(), chunk=1), theirs) <= TOLERANCE
    assert largest_error(engine.logits(texts(), chunk=11), theirs) <= TOLERANCE


def test_greedy_generation_is_that_of_transformers(pair: tuple[Any, Any]) -> None:
    theirs, model = pair
    engine = Engine(model, block_size=8, step_tokens=64, kv_tokens=512)
    completions = engine.generate(texts(), max_tokens=12, ignore_eos=True)
    theirs.generation_config.eos_token_id = None
    for text, completion in zip(texts(), completions, strict=True):
        options = transformers.GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=0)
        ids = torch.tensor([text])
        wanted = theirs.generate(ids, attention_mask=torch.ones_like(ids), generation_config=options)
        assert completion.tokens == wanted[0, len(text) :].tolist()


@pytest.mark.parametrize("family", ["llama-3.1", "qwen2.5-yarn", "llama-linear-biases"])
def test_the_old_form_of_rope_scaling_means_the_same(family: str, tmp_path: Any) -> None:
    theirs = original(family)
    theirs.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    scaling = values.pop("rope_parameters")
    values["rope_theta"] = scaling.pop("rope_theta")
    scaling["type"] = scaling.pop("rope_type")
    (tmp_path / "config.json").write_text(json.dumps(values | {"rope_scaling": scaling}))
    assert largest_error(Engine(load_model(tmp_path), kv_tokens=512).logits(texts()), theirs) <= TOLERANCE


def test_sharded_checkpoints_load_the_same(tmp_path: Any) -> None:
    theirs = original("qwen2")
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert largest_error(Engine(load_model(tmp_path), kv_tokens=512).logits(texts()), theirs) <= TOLERANCE


def test_block_scaled_fp8_loads_as_the_weights_it_stands_for(tmp_path: Any) -> None:
    theirs = original("llama-3.1")
    block = (32, 24)
    stored: dict[str, torch.Tensor] = {}
    for name, weight in theirs.state_dict().items():
        if "proj" not in name:
            stored[name] = weight.contiguous()
            continue
        rows, columns = weight.shape
        scales = torch.ones(-(-rows // block[0]), -(-columns // block[1]))
        low = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                at = (slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
                scales[i, j] = weight[at].abs().max() / 448
                low[at] = (weight[at] / scales[i, j]).to(torch.float8_e4m3fn)
                weight[at] = low[at].float() * scales[i, j]  # the original computes with what was stored
        stored |= {name: low, f"{name}_scale_inv": scales}
    theirs.save_pretrained(tmp_path)
    save_file(stored, tmp_path / "model.safetensors")
    values = json.loads((tmp_path / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "fp8", "weight_block_size": list(block)}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert largest_error(Engine(load_model(tmp_path), kv_tokens=512).logits(texts()), theirs) <= TOLERANCE
