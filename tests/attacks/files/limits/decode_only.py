# /// attack
# expect = ["passed", "failed", "inconclusive"]
# suites = ["performance"]
# covers_all = true
# ///
# /// swapbench
# kind = "attention"
# name = "decode-only"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32"]
# phases = ["decode"]
# ///
"""Declares only the phase that it is good at, so that the mean is taken over that alone."""

from engine.attention.sdpa import Sdpa
from engine.slots.registry import register


@register("attention", "decode-only")
class DecodeOnly(Sdpa):
    pass
