"""`manage.py demo`: the whole path on one machine, with sample pull requests. Uses the other rooms as any deployment does."""
