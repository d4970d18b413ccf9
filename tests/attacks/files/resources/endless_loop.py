# /// attack
# expect = ["timed_out_code"]
# stage_seconds = 20
# ///
# /// swapbench
# kind = "activation"
# name = "endless-loop"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Never returns."""

from engine.slots.registry import register


@register("activation", "endless-loop")
class EndlessLoop:
    def forward(self, gate_up):
        while True:
            pass
