# /// attack
# expect = ["failed"]
# says = "memory"
# ///
# /// swapbench
# kind = "activation"
# name = "memory"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Allocates 10 GB."""

import torch

block = [torch.ones(250_000_000) for _ in range(10)]
