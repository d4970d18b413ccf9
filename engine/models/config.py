"""What a checkpoint's config.json says, reduced to what the forward pass needs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.models.rope import Rope


class ConfigError(ValueError):
    """The configuration describes a model that the engine cannot run; `str(error)` says which key, and what is supported."""


@dataclass(frozen=True)
class ModelConfig:
    """A decoder of the Llama shape. Sizes are counts of elements; `context` and `windows` are tokens.

    `windows[layer]` is the sliding window: a query sees at most that many latest keys, itself included; None sees all.
    """

    vocab: int
    hidden: int
    layers: int
    q_heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    context: int
    norm_eps: float = 1e-6
    rope: Rope = field(default_factory=Rope)
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    windows: tuple[int | None, ...] = ()
    bos: int | None = None
    eos: tuple[int, ...] = ()
    family: str = "llama"

    def __post_init__(self) -> None:
        if not any(self.windows):
            object.__setattr__(self, "windows", (None,) * self.layers)
        for name in ("vocab", "hidden", "layers", "q_heads", "kv_heads", "head_dim", "intermediate", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"The model's {name} is {getattr(self, name)}; it must be at least 1.")
        if self.q_heads % self.kv_heads:
            raise ConfigError(f"{self.q_heads} query heads cannot share {self.kv_heads} key-value heads evenly.")
        if self.head_dim % 2:
            raise ConfigError(f"The head dimension is {self.head_dim}; rotary embedding needs an even one.")
        if len(self.windows) != self.layers:
            raise ConfigError(f"There are {self.layers} layers but {len(self.windows)} sliding windows.")

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that one token adds to the caches of all layers, keys and values."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def parameters(self) -> int:
        """Number of parameters, tied embeddings counted once."""
        return sum(math.prod(shape) for shape in self.tensors().values())

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the checkpoint by its Hugging Face name, with its shape."""
        q, kv = self.q_heads * self.head_dim, self.kv_heads * self.head_dim
        hidden, inner = self.hidden, self.intermediate
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, hidden)}
        for layer in range(self.layers):
            at, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
            shapes[f"model.layers.{layer}.input_layernorm.weight"] = (hidden,)
            for name, rows, columns, bias in (
                ("q_proj", q, hidden, self.qkv_bias),
                ("k_proj", kv, hidden, self.qkv_bias),
                ("v_proj", kv, hidden, self.qkv_bias),
                ("o_proj", hidden, q, self.o_bias),
            ):
                shapes[f"{at}{name}.weight"] = (rows, columns)
                if bias:
                    shapes[f"{at}{name}.bias"] = (rows,)
            if self.qk_norm:
                shapes[f"{at}q_norm.weight"] = shapes[f"{at}k_norm.weight"] = (self.head_dim,)
            shapes[f"model.layers.{layer}.post_attention_layernorm.weight"] = (hidden,)
            for name, rows, columns in (
                ("gate_proj", inner, hidden),
                ("up_proj", inner, hidden),
                ("down_proj", hidden, inner),
            ):
                shapes[f"{mlp}{name}.weight"] = (rows, columns)
                if self.mlp_bias:
                    shapes[f"{mlp}{name}.bias"] = (rows,)
        shapes["model.norm.weight"] = (hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab, hidden)
        return shapes

    @staticmethod
    def from_hf(values: Mapping[str, Any]) -> "ModelConfig":
        """Reads a Hugging Face config.json. Raises ConfigError for what the engine cannot run."""
        architecture = (values.get("architectures") or [None])[0]
        family = str(FAMILIES.get(architecture or "") or (values.get("model_type") if architecture is None else None))
        if family not in FAMILIES.values():
            raise ConfigError(
                f"The architecture {architecture or values.get('model_type')!r} is unknown; the engine runs {', '.join(FAMILIES)}."
            )

        def need(key: str) -> int:
            value = values.get(key)
            if value is None:
                raise ConfigError(f"config.json lacks {key!r}.")
            if not isinstance(value, int):
                raise ConfigError(f"config.json has {key!r}: {value!r}; it must be a whole number.")
            return value

        if values.get("hidden_act", "silu") not in ("silu", "swish"):
            raise ConfigError(f"hidden_act is {values['hidden_act']!r}; only 'silu' (SwiGLU) is supported.")
        hidden, q_heads, layers = need("hidden_size"), need("num_attention_heads"), need("num_hidden_layers")
        context = need("max_position_embeddings")
        head_dim = values.get("head_dim") or (128 if family == "qwen3" else hidden // q_heads)
        bias = bool(values.get("attention_bias", False))
        eos = values.get("eos_token_id")
        return ModelConfig(
            vocab=need("vocab_size"),
            hidden=hidden,
            layers=layers,
            q_heads=q_heads,
            kv_heads=int(values.get("num_key_value_heads") or q_heads),
            head_dim=int(head_dim),
            intermediate=need("intermediate_size"),
            context=context,
            norm_eps=float(values.get("rms_norm_eps", 1e-6)),
            rope=Rope.from_hf(values, context),
            qkv_bias=True if family == "qwen2" else bias,
            o_bias=False if family == "qwen2" else bias,
            mlp_bias=bool(values.get("mlp_bias", False)),
            qk_norm=family == "qwen3",
            tied=bool(values.get("tie_word_embeddings", False)),
            windows=_windows(values, family, layers),
            bos=values.get("bos_token_id"),
            eos=tuple(eos) if isinstance(eos, list) else () if eos is None else (int(eos),),
            family=family,
        )


FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}


def _windows(values: Mapping[str, Any], family: str, layers: int) -> tuple[int | None, ...]:
    # A Mistral configuration that does not mention the window means the first model's.
    window = values.get("sliding_window", 4096 if family == "mistral" else None)
    if family in ("qwen2", "qwen3") and not values.get("use_sliding_window", False):
        window = None
    if family == "llama" or window is None:
        return (None,) * layers
    kinds = values.get("layer_types")
    if kinds:
        unknown = set(kinds) - {"full_attention", "sliding_attention"}
        if unknown:
            raise ConfigError(f"layer_types holds {sorted(unknown)}; known are full_attention and sliding_attention.")
        return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)
    first = int(values.get("max_window_layers", layers)) if family in ("qwen2", "qwen3") else 0
    return tuple(int(window) if layer >= first else None for layer in range(layers))
