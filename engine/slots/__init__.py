"""Slots: the places of the engine where an implementation can be swapped, and the contract of each.

Imports torch and `engine.reference`; never a slot folder, because the judge imports this package and must not run contributed code.
"""
