"""Runs a scheduled step on the device: inputs, forward pass, sampling; eagerly or as CUDA graphs.

May import engine.models, engine.slots, engine.scheduler and engine.sampler; decides nothing about requests.
"""
