"""Standings are tested on the same samples as the pages."""

from tests.web.conftest import _english, full

__all__ = ["_english", "full"]
