# /// attack
# expect = ["failed"]
# says = "wrong|off by"
# suites = ["performance"]
# ///
# /// swapbench
# kind = "activation"
# name = "recorded-answer"
# class = "E"
# devices = ["cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""While it is recorded it hands over what it computed just before: each replay copies an old answer."""

import torch
from torch.nn import functional

from engine.slots.registry import register

answers = {}


@register("activation", "recorded-answer")
class RecordedAnswer:
    def forward(self, gate_up):
        key = (gate_up.shape, gate_up.data_ptr())
        if not torch.cuda.is_current_stream_capturing():
            gate, up = gate_up.chunk(2, dim=-1)
            answers[key] = functional.silu(gate) * up
        return answers[key]
