"""The read-only API: submissions, outcomes, tracks, queue and workers as JSON and CSV, described by OpenAPI.

May import what `web` may import, and `web`'s queries, so that a page and the API never disagree.
"""
