"""NotPossible: what a person asked for cannot be done now."""


class NotPossible(Exception):
    """`str(error)` says why, and what to do instead."""
