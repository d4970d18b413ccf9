"""A checkpoint loads completely or not at all, tensor by tensor, and errors name what is wrong."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.generate import Engine
from engine.loader import LoadError, load_model, random_model
from engine.models.config import ConfigError, ModelConfig
from engine.models.transformer import Dense
from tests.engine.cast import SMALL, small_model, text

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "torch_dtype": "float32",
}


def tensors(config: ModelConfig = SMALL) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {name: torch.randn(shape) * 0.1 for name, shape in config.tensors().items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors(), tmp_path / "model.safetensors")
    return tmp_path


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    stored = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        if tensor is None:
            del stored[name]
        else:
            stored[name] = tensor
    save_file(stored, folder / "model.safetensors")


def configure(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))


def test_a_folder_and_a_dict_of_tensors_make_the_same_model(folder: Path) -> None:
    one, other = load_model(folder), load_model(SMALL, tensors())
    assert one.tensors().keys() == other.tensors().keys()
    assert all(torch.equal(a, b) for a, b in zip(one.tensors().values(), other.tensors().values(), strict=True))


def test_dtype_is_the_checkpoints_unless_another_is_asked_for(folder: Path) -> None:
    configure(folder, torch_dtype="bfloat16")
    assert load_model(folder).dtype == torch.bfloat16
    assert load_model(folder, dtype=torch.float32).dtype == torch.float32
    with pytest.raises(LoadError, match="int64 cannot be computed in"):
        load_model(folder, dtype=torch.int64)


def test_missing_extra_and_misshaped_tensors_are_named(folder: Path) -> None:
    rewrite(folder, model__layers__1__mlp__up_proj__weight=None)
    with pytest.raises(LoadError, match=r"missing: model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(folder)
    rewrite(folder, model__layers__1__mlp__up_proj__weight=torch.zeros(48, 31))
    with pytest.raises(LoadError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is \[48, 31\] instead of \[48, 32\]"):
        load_model(folder)
    rewrite(folder, model__layers__1__mlp__up_proj__weight=torch.zeros(48, 32), model__vision__weight=torch.zeros(2))
    with pytest.raises(LoadError, match=r"not part of the architecture: model\.vision\.weight"):
        load_model(folder)


def test_what_exporters_store_though_it_follows_from_the_configuration_is_ignored(folder: Path) -> None:
    rewrite(folder, model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(4))
    assert load_model(folder).config.layers == 2


def test_end_tokens_of_the_generation_config_count_too(folder: Path) -> None:
    configure(folder, eos_token_id=3)
    assert load_model(folder).config.eos == (3,)
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 3, 9]}')
    assert load_model(folder).config.eos == (3, 5, 9)
    (folder / "generation_config.json").write_text("[]")
    with pytest.raises(LoadError, match="generation_config"):
        load_model(folder)


def test_a_tied_head_is_the_embedding_itself(folder: Path) -> None:
    configure(folder, tie_word_embeddings=True)
    model = load_model(folder)
    assert model.head is model.embed
    assert model.nbytes() == 4 * model.config.parameters()
    rewrite(folder, lm_head__weight=None)
    assert load_model(folder).head.packed["weight"].shape == (97, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, r"'MambaForCausalLM' is unknown; the engine runs LlamaForCausalLM"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is unknown"),
        ({"rope_scaling": {"type": "linear"}}, "needs a 'factor'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"num_key_value_heads": 3}, "4 query heads cannot share 3"),
        ({"hidden_size": None}, "config.json lacks 'hidden_size'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method 'gptq'"),
        ({"head_dim": 7}, "needs an even one"),
        ({"num_hidden_layers": 0}, "layers is 0"),
        ({"intermediate_size": "wide"}, "'intermediate_size': 'wide'; it must be a whole number"),
    ],
)
def test_what_the_engine_does_not_run_is_said_before_anything_is_read(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    configure(folder, **change)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=message):
        load_model(folder)


def test_files_that_are_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="it has no config"):
        load_model(folder / "nothing")
    (folder / "config.json").write_text("{")
    with pytest.raises(LoadError, match="not valid JSON"):
        load_model(folder)
    configure(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(LoadError, match="never opened"):
        load_model(folder)


@pytest.mark.parametrize("damage", ["cut", "garbage", "header"])
def test_a_corrupt_file_is_named(folder: Path, damage: str) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-100], "garbage": b"\xff" * 64, "header": data[:8] + b"?" + data[9:]}[damage])
    with pytest.raises(LoadError, match=r"model\.safetensors is not a valid safetensors file"):
        load_model(folder)


def test_shards_that_are_missing_or_outside_are_named(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(LoadError, match=r"model-00001-of-00002.*which is not in"):
        load_model(folder)
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../model.safetensors"}}))
    with pytest.raises(LoadError, match="not a file name within the folder"):
        load_model(folder)
    index.write_text("[]")
    with pytest.raises(LoadError, match="weight_map"):
        load_model(folder)


def test_a_tensor_in_two_shards_is_refused(folder: Path) -> None:
    save_file({"model.norm.weight": torch.zeros(32)}, folder / "extra.safetensors")
    names = {"a": "model.safetensors", "b": "extra.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(LoadError, match=r"'model\.norm\.weight' is both in"):
        load_model(folder)


def test_fp8_scales_are_checked(folder: Path) -> None:
    low = torch.zeros(32, 32).to(torch.float8_e4m3fn)
    rewrite(folder, model__layers__0__self_attn__q_proj__weight=low)
    with pytest.raises(LoadError, match=r"q_proj\.weight' is FP8, but there is no"):
        load_model(folder)
    configure(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [16, 16]})
    rewrite(folder, model__layers__0__self_attn__q_proj__weight_scale_inv=torch.ones(2, 3))
    with pytest.raises(LoadError, match=r"blocks of \[16, 16\] over \[32, 32\] need \[2, 2\]"):
        load_model(folder)


def test_scales_that_scale_nothing_are_refused(folder: Path) -> None:
    configure(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [16, 16]})
    rewrite(folder, model__layers__0__self_attn__q_proj__weight_scale_inv=torch.ones(2, 2))
    with pytest.raises(LoadError, match=r"q_proj\.weight' is torch\.float32, but has a scale"):
        load_model(folder)
    rewrite(
        folder,
        model__layers__0__self_attn__q_proj__weight_scale_inv=None,
        model__layers__9__self_attn__q_proj__weight_scale_inv=torch.ones(2, 2),
    )
    with pytest.raises(
        LoadError, match=r"not part of the architecture: model\.layers\.9\.self_attn\.q_proj\.weight_scale_inv"
    ):
        load_model(folder)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), MemoryError(), RuntimeError("Triton Error [CUDA]: out of memory")]
)
def test_weights_that_do_not_fit_are_said_to(folder: Path, error: Exception) -> None:
    def full(name: str) -> None:
        raise error

    with pytest.raises(
        LoadError, match=r"do not fit into the memory that cpu has free: .* parameters, .* GiB in torch\.float32"
    ):
        load_model(folder, on_tensor=full)


def test_integer_weights_are_refused(folder: Path) -> None:
    rewrite(folder, model__norm__weight=torch.zeros(32, dtype=torch.int32))
    with pytest.raises(LoadError, match=r"model\.norm\.weight' is torch\.int32"):
        load_model(folder)


def test_a_device_that_is_not_there() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(LoadError, match="torch sees no CUDA device"):
            random_model(SMALL, device="cuda")
    with pytest.raises(LoadError, match="'abacus' is no device"):
        random_model(SMALL, device="abacus")


def test_a_configuration_without_weights_is_no_model() -> None:
    for nothing in (None, {}):
        with pytest.raises(LoadError, match="has no weights"):
            load_model(SMALL, nothing)


def test_random_models_follow_their_seed() -> None:
    one, same, other = small_model(1), small_model(1), small_model(2)
    assert all(torch.equal(a, b) for a, b in zip(one.tensors().values(), same.tensors().values(), strict=True))
    assert not torch.equal(one.head.packed["weight"], other.head.packed["weight"])


class Halved(Dense):
    """A scheme that a test can recognise: the weight at half its size."""

    def pack(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"half": weight * 0.5}

    def linear(self, x: torch.Tensor, packed: Any) -> torch.Tensor:
        return x @ packed["half"].T * 2

    def embedding(self, ids: torch.Tensor, packed: Any) -> torch.Tensor:
        return packed["half"][ids] * 2

    def dequant(self, packed: Any) -> torch.Tensor:
        return packed["half"].float() * 2


class RowsOnly(Halved):
    """A scheme without `embedding`."""

    embedding = property()  # type: ignore[assignment]


def test_patterns_choose_the_matrices_that_are_packed() -> None:
    scheme = Halved()
    patterns = {"layers.*.mlp.*": scheme, "layers.1.attn.qkv": scheme, "layers.1.mlp.down": "none", "embed": scheme}
    model = random_model(SMALL, 0, quantization=patterns)
    packed = [linear.name for linear in model.linears() if linear.scheme is scheme]
    assert packed == ["embed", "layers.0.mlp.gate_up", "layers.0.mlp.down", "layers.1.attn.qkv", "layers.1.mlp.gate_up"]
    with pytest.raises(ValueError, match=r"'layers.\*.mlp.upp' matches no weight"):
        random_model(SMALL, 0, quantization={"layers.*.mlp.upp": scheme})


@pytest.mark.parametrize("tied", [False, True])
def test_packing_at_load_and_packing_a_loaded_model_agree(tied: bool) -> None:
    config = replace(SMALL, tied=tied)
    plain = random_model(config, 0)
    before = {name: tensor.clone() for name, tensor in plain.tensors().items()}
    texts = [text(20), text(5)]
    for scheme in (Halved(), RowsOnly()):
        late = Engine(plain, slots={"quantization": scheme})
        early = Engine(random_model(config, 0, quantization=scheme))
        assert set(late.model.tensors()) == set(early.model.tensors())
        assert all(isinstance(linear.scheme, Halved) for linear in list(late.model.linears())[1:])
        for one, other, unpacked in zip(
            late.logits(texts), early.logits(texts), Engine(plain).logits(texts), strict=True
        ):
            assert torch.equal(one, other)
            assert (one - unpacked).abs().max() < 1e-4
    assert all(torch.equal(before[name], tensor) for name, tensor in plain.tensors().items()), (
        "the model stays as it was"
    )


MEASURE = """
import sys, torch
from engine.loader import load_model
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))
torch.set_num_threads(1)
before = anonymous()
peak = [0]
model = load_model(sys.argv[1], dtype=torch.float32, on_tensor=lambda name: peak.append(anonymous() - before))
print(max(peak), model.nbytes(), max(linear.packed["weight"].nbytes for linear in model.linears()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_loading_never_holds_two_copies_of_the_weights(tmp_path: Path) -> None:
    config = replace(SMALL, hidden=512, intermediate=1024, layers=8, vocab=4096)
    save_file(
        {n: torch.zeros(s, dtype=torch.bfloat16) for n, s in config.tensors().items()}, tmp_path / "model.safetensors"
    )
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8, "vocab_size": 4096}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | sizes))
    output = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True)
    peak, weights, largest = map(int, output.stdout.split())
    assert weights > 60e6
    assert peak < weights + 2 * largest
