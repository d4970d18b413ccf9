"""Decoder-only transformers of the Llama shape: configuration, rotary embedding, and the forward pass over packed tokens.

May import torch and engine.slots; knows nothing of caches' owners, schedulers or files.
"""
