"""The judge's engine with the slot's calls in the host: quality against the declared class."""
