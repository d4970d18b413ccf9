"""The judge's clock as pytest-benchmark reads it: it runs while a call is pending, and stands still otherwise."""

_seconds = 0.0


def advance(seconds: float) -> None:
    """Adds the time that a call was pending."""
    global _seconds
    _seconds += seconds


def now() -> float:
    """Seconds that calls have been pending since the judge started; the timer of pytest-benchmark's rounds."""
    return _seconds
