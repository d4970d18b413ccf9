"""The slot against the reference over a matrix of cases, and its properties."""
