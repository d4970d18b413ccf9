"""Implementations of one slot kind, one file each. Loaded by name through `engine.slots.registry`; imports `engine.slots` only."""
