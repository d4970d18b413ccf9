"""Standings: tracks, ranks by significance tier, Pareto front, history of the branch. Read-only queries."""
