"""From a checkpoint on disk, a dict of tensors, or a seed, to a Model; one tensor at a time, never two copies of the weights.

May import safetensors, engine.bind and engine.models. Pickled checkpoints are never opened.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.bind import schemes
from engine.models.config import ConfigError, ModelConfig
from engine.models.transformer import DENSE, Layer, Linear, Model

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Tensors that some exporters store although they follow from the configuration.
DERIVED = ("rotary_emb.inv_freq", "attn.masked_bias", "attn.bias_mask")


class LoadError(ValueError):
    """A checkpoint cannot be loaded; `str(error)` names the file or tensor, what is wrong and what was expected."""


class Weights(Protocol):
    """Where tensors come from, by their Hugging Face names."""

    def names(self) -> Iterable[str]:
        """Every name that there is."""

    def read(self, name: str) -> Tensor:
        """The tensor called `name`, which is one of `names()`, in float."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, without reading it."""


class InMemory:
    """Weights from a dict of tensors."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def names(self) -> Iterable[str]:
        return self.tensors

    def read(self, name: str) -> Tensor:
        return self.tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)


class Random:
    """Weights drawn from a seed: norms are 1, biases and matrices normal with a deviation of 0.02 (embedding: 1).

    Drawn on `device`, so that a model larger than the host's memory can be made there.
    """

    def __init__(self, config: ModelConfig, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shapes = config.tensors()
        self.dtype = dtype
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)

    def names(self) -> Iterable[str]:
        return self.shapes

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def read(self, name: str) -> Tensor:
        tensor = torch.empty(self.shapes[name], dtype=self.dtype, device=self.device)
        if name.endswith("norm.weight"):
            return tensor.fill_(1.0)
        return tensor.normal_(0.0, 1.0 if "embed" in name else 0.02, generator=self.generator)


class Checkpoint:
    """The safetensors files of a folder, read tensor by tensor; block-scaled FP8 weights are dequantised on the way."""

    def __init__(self, folder: Path, fp8_block: tuple[int, int] | None) -> None:
        self.fp8_block = fp8_block
        self.files: dict[str, Any] = {}
        self.where: dict[str, str] = {}
        for path in _safetensors_files(folder):
            try:
                # A file opens as a lazy map; tensors are read when asked for.
                self.files[path.name] = handle = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise LoadError(
                    f"{path} is not a valid safetensors file ({error}). Download or export it again."
                ) from None
            for name in handle.keys():  # noqa: SIM118 (not a dict)
                if name in self.where:
                    raise LoadError(f"The tensor {name!r} is both in {self.where[name]} and in {path.name}.")
                self.where[name] = path.name

    def names(self) -> Iterable[str]:
        # A scale belongs to its weight; one without is like any other tensor that the architecture does not have.
        scales = {f"{name}_scale_inv" for name in self.where} if self.fp8_block else set()
        return [name for name in self.where if name not in scales]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.files[self.where[name]].get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        tensor = self._get(name)
        scale_name = f"{name}_scale_inv"
        if tensor.dtype != torch.float8_e4m3fn:
            if not tensor.is_floating_point():
                raise LoadError(f"The tensor {name!r} is {tensor.dtype}; weights must be floating point.")
            if scale_name in self.where:
                raise LoadError(
                    f"The tensor {name!r} is {tensor.dtype}, but has a scale, {scale_name!r}, as FP8 would."
                )
            return tensor
        if self.fp8_block is None or scale_name not in self.where:
            raise LoadError(
                f"The tensor {name!r} is FP8, but there is no {scale_name!r} with quantization_config.weight_block_size to "
                "scale it by; only block-scaled FP8 (DeepSeek's form) is read."
            )
        return _dequantize_blocks(name, tensor, self._get(scale_name), self.fp8_block)

    def _get(self, name: str) -> Tensor:
        try:
            tensor: Tensor = self.files[self.where[name]].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise LoadError(f"The tensor {name!r} in {self.where[name]} cannot be read: {error}.") from None
        return tensor


def load_model(
    path: str | Path | ModelConfig,
    weights: Mapping[str, Tensor] | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    quantization: Any = None,
    on_tensor: Callable[[str], None] = lambda name: None,
) -> Model:
    """Loads a Hugging Face checkpoint folder, or a configuration with its tensors by their Hugging Face names.

    `dtype` of activations and unquantised weights (default: the checkpoint's); `quantization` names the quantization of
    the matrices (see `engine.bind.schemes`), which packs each as soon as it is read. `on_tensor` hears the name of each
    matrix as it is done.
    Raises LoadError for a checkpoint that is missing, corrupt, incomplete or of another shape, ConfigError for an
    architecture or option that the engine does not run.
    """
    if isinstance(path, ModelConfig):
        if not weights:
            raise LoadError("A configuration alone has no weights; pass weights={name: tensor}, or use random_model().")
        config, stored = path, next(iter(weights.values())).dtype
        source: Weights = InMemory(weights)
    else:
        values = read_config(Path(path))
        config = with_generation_eos(ModelConfig.from_hf(values), Path(path))
        source = Checkpoint(Path(path), _fp8_block(values))
        stored = getattr(torch, str(values.get("dtype") or values.get("torch_dtype") or "float32"), torch.float32)
    return build(config, source, _usable(dtype or stored), usable_device(device), quantization, on_tensor)


def random_model(
    config: ModelConfig,
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    quantization: Any = None,
) -> Model:
    """A model of random weights, drawn on `device`; the same for the same seed, dtype and device type."""
    device = usable_device(device)
    return build(config, Random(config, seed, _usable(dtype), device), dtype, device, quantization)


def build(
    config: ModelConfig,
    source: Weights,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Any = None,
    on_tensor: Callable[[str], None] = lambda name: None,
) -> Model:
    """Checks names and shapes of all that `source` has, then builds the model matrix by matrix.

    Raises LoadError where a tensor is wrong, or memory does not suffice.
    """
    _check(config, source)
    chosen = schemes(quantization, config, dtype, device)
    try:
        return _built(config, source, dtype, device, chosen, on_tensor)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise LoadError(
            f"The weights do not fit into the memory that {device} has free: {config.parameters():,} parameters, "
            f"{config.parameters() * dtype.itemsize / 2**30:.1f} GiB in {dtype} before any quantization. Choose a quantization, "
            "a narrower dtype or another device."
        ) from None


def _built(
    config: ModelConfig,
    source: Weights,
    dtype: torch.dtype,
    device: torch.device,
    chosen: Mapping[str, Any],
    on_tensor: Callable[[str], None],
) -> Model:
    def vector(name: str) -> Tensor:
        return source.read(name).to(device=device, dtype=dtype, copy=True)

    def matrix(name: str, *parts: str, bias: bool = False) -> Linear:
        def stacked(kind: str) -> Tensor:
            shapes = [source.shape(f"{part}.{kind}") for part in parts]
            whole = torch.empty(sum(shape[0] for shape in shapes), *shapes[0][1:], dtype=dtype, device=device)
            start = 0
            for part, shape in zip(parts, shapes, strict=True):
                whole[start : start + shape[0]].copy_(source.read(f"{part}.{kind}"))
                start += shape[0]
            return whole

        scheme = chosen.get(name, DENSE)
        if name == "embed" and not hasattr(scheme, "embedding"):
            scheme = DENSE
        linear = Linear(name, scheme.pack(stacked("weight")), stacked("bias") if bias else None, scheme)
        on_tensor(name)
        return linear

    embed = matrix("embed", "model.embed_tokens")
    layers = []
    for index in range(config.layers):
        base = f"model.layers.{index}."
        at, mlp = base + "self_attn.", base + "mlp."
        layers.append(
            Layer(
                attn_norm=vector(base + "input_layernorm.weight"),
                qkv=matrix(
                    f"layers.{index}.attn.qkv", at + "q_proj", at + "k_proj", at + "v_proj", bias=config.qkv_bias
                ),
                q_norm=vector(at + "q_norm.weight") if config.qk_norm else None,
                k_norm=vector(at + "k_norm.weight") if config.qk_norm else None,
                o=matrix(f"layers.{index}.attn.o", at + "o_proj", bias=config.o_bias),
                mlp_norm=vector(base + "post_attention_layernorm.weight"),
                gate_up=matrix(f"layers.{index}.mlp.gate_up", mlp + "gate_proj", mlp + "up_proj", bias=config.mlp_bias),
                down=matrix(f"layers.{index}.mlp.down", mlp + "down_proj", bias=config.mlp_bias),
            )
        )
    norm = vector("model.norm.weight")
    if not config.tied:
        head = matrix("head", "lm_head")
    elif embed.scheme is chosen.get("embed", DENSE):
        head = embed
    else:
        head = replace(embed.repacked(chosen["embed"], dtype), name="head")
    return Model(config, embed, layers, norm, head)


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a checkpoint folder. Raises LoadError."""
    path = folder / "config.json"
    if not path.is_file():
        raise LoadError(f"{folder} is no checkpoint: it has no config.json. Give a folder in Hugging Face's layout.")
    return read_object(path)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises LoadError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoadError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(values, dict):
        raise LoadError(f"{path} must hold a JSON object.")
    return values


def with_generation_eos(config: ModelConfig, folder: Path) -> ModelConfig:
    """`config` with the end tokens that generation_config.json adds (Llama 3 ends a turn by another than a text)."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return config
    more = read_object(path).get("eos_token_id")
    added = more if isinstance(more, list) else [] if more is None else [more]
    return replace(config, eos=tuple(dict.fromkeys((*config.eos, *added))))


def usable_device(device: str | torch.device) -> torch.device:
    """`device` as torch has it. Raises LoadError where this machine has no such device."""
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise LoadError(f"{device!r} is no device: {str(error).splitlines()[0]}.") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise LoadError("The device is 'cuda', but torch sees no CUDA device here; use device='cpu'.")
    return found


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory could not be allocated; the CPU, kernels and libraries raise a plain RuntimeError for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(each in str(error) for each in words)


def _usable(dtype: torch.dtype) -> torch.dtype:
    if dtype not in DTYPES:
        raise LoadError(f"The dtype {dtype} cannot be computed in; use one of {', '.join(map(str, DTYPES))}.")
    return dtype


def _check(config: ModelConfig, source: Weights) -> None:
    expected, present = config.tensors(), set(source.names())
    missing = [name for name in expected if name not in present]
    # A tied model's head is its embedding, whether or not it was stored a second time.
    allowed = {"lm_head.weight"} if config.tied else set()
    extra = sorted(n for n in present - expected.keys() - allowed if not any(n.endswith(end) for end in DERIVED))
    wrong = [
        f"{name} is {list(source.shape(name))} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in present and source.shape(name) != shape
    ]
    faults = [f"missing: {_some(missing)}"] if missing else []
    faults += [f"not part of the architecture: {_some(extra)}"] if extra else []
    faults += [f"of another shape: {_some(wrong)}"] if wrong else []
    if faults:
        raise LoadError(
            f"The checkpoint does not fit its configuration ({config.family}). Tensors {'; '.join(faults)}."
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _safetensors_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        single = folder / "model.safetensors"
        if single.is_file():
            return [single]
        hint = (
            " It has pickled weights (*.bin), which are never opened: convert them."
            if any(folder.glob("*.bin"))
            else ""
        )
        raise LoadError(f"{folder} has neither model.safetensors nor model.safetensors.index.json.{hint}")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise LoadError(f"{index} is not a valid index: expected an object 'weight_map' from tensor to file.") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise LoadError(f"{index} names the file {name!r}, which is not a file name within the folder.")
        if not (folder / name).is_file():
            raise LoadError(f"{index} names the shard {name!r}, which is not in {folder}.")
    return [folder / name for name in names]


def _fp8_block(values: Mapping[str, Any]) -> tuple[int, int] | None:
    scheme = values.get("quantization_config")
    if scheme is None:
        return None
    block = scheme.get("weight_block_size")
    if scheme.get("quant_method") != "fp8" or not (isinstance(block, list) and len(block) == 2 and min(block) > 0):
        raise ConfigError(
            f"quantization_config has quant_method {scheme.get('quant_method')!r} and weight_block_size {block}; only 'fp8' "
            "with a block of [rows, columns] is read."
        )
    return int(block[0]), int(block[1])


def _dequantize_blocks(name: str, weight: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    """float32 [rows, columns]: each block of `weight` times its scale (DeepSeek-V3 report, arXiv:2412.19437, §3.3)."""
    rows, columns = weight.shape
    wanted = (math.ceil(rows / block[0]), math.ceil(columns / block[1]))
    if tuple(scale.shape) != wanted:
        raise LoadError(
            f"{name}_scale_inv is {list(scale.shape)}; blocks of {list(block)} over {list(weight.shape)} need {list(wanted)}."
        )
    spread = scale.float().repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    return weight.float() * spread
