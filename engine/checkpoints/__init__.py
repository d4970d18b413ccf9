"""Checkpoints that ship with the engine, and what was measured of them. Imports engine.corpus and engine.train_reference."""
