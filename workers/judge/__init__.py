"""The judge: owns the clock, the seeds, the inputs to come, the expected outputs and the verdict.

Trusted. Imports engine.slots, engine.models and engine.reference, and nothing from slot folders, merged or not.
"""
