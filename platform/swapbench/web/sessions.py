"""Sessions in the database, whose keys are looked at before they are looked up."""

from django.contrib.sessions.backends.db import SessionStore as DatabaseStore


class SessionStore(DatabaseStore):
    """A cookie may hold anything, also a NUL, on which PostgreSQL raises an error; a key that Django made is alphanumeric."""

    def _validate_session_key(self, key: str | None) -> bool:
        return bool(super()._validate_session_key(key) and key and key.isascii() and key.isalnum())  # type: ignore[misc]
