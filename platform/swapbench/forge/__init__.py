"""Forges: where pull requests come from and reports go to. `forge.chosen.forge()` is the one that is configured."""
