"""Submissions: from a pull request's head to attempts, results and verdicts. Knows nothing of the merge queue or pages."""
