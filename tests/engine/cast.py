"""The small model that the engine's tests share."""

import random
from pathlib import Path
from typing import Any

from engine.loader import random_model
from engine.models.config import ModelConfig
from engine.models.transformer import Model

SMALL = ModelConfig(
    vocab=97, hidden=32, layers=2, q_heads=4, kv_heads=2, head_dim=8, intermediate=48, context=128, norm_eps=1e-5
)
REFERENCE = Path(__file__).resolve().parents[2] / "engine" / "checkpoints" / "reference"


def small_model(seed: int = 0, **changes: Any) -> Model:
    """A model with random weights, fp32, on the CPU."""
    from dataclasses import replace

    return random_model(replace(SMALL, **changes), seed)


def text(length: int, seed: int = 0) -> list[int]:
    """Random tokens."""
    draw = random.Random(seed)
    return [draw.randrange(SMALL.vocab) for _ in range(length)]
