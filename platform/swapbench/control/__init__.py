"""The control process: one loop that does what is due, and the Celery worker that takes what judge workers say."""
