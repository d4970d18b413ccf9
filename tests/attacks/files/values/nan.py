# /// attack
# expect = ["failed"]
# ///
# /// swapbench
# kind = "activation"
# name = "nan"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Returns NaN, which is above no bound."""

from engine.slots.registry import register


@register("activation", "nan")
class Nan:
    def forward(self, gate_up):
        return gate_up[:, ::2] * float("nan")
