# /// attack
# expect = ["failed"]
# says = "RuntimeError"
# quick = true
# ///
# /// swapbench
# kind = "activation"
# name = "long-error"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Raises an error of many megabytes full of terminal codes and markup, to break whatever prints or stores it."""

from engine.slots.registry import register


@register("activation", "long-error")
class LongError:
    def forward(self, gate_up):
        raise RuntimeError("\x1b[2J\x1b]0;passed\x07<script>alert(1)</script>\u202e\x00[bold]" * 200_000)
