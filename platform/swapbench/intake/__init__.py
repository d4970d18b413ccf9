"""Intake: turns what the forge says into Submissions or recorded refusals. Imports forge and submissions."""
