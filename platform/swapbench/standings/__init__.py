"""Standings: tracks, ranks by significance tier, the Pareto front, the history of the branch. Read-only queries.

May import submissions, mergequeue, `workers.protocol` and `workers.statistics`.
"""
