"""Conditional answers for the parts of pages that ask again and again: 304 with an empty body while nothing has changed."""

import hashlib
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse
from django.utils.translation import get_language
from django.views.decorators.cache import cache_control
from django.views.decorators.http import condition, require_safe

View = Callable[..., HttpResponse]


def etag(version: str) -> str:
    """An ETag of what is shown, in the language in which it is shown."""
    return f'"{hashlib.sha256(f"{get_language()} {version}".encode()).hexdigest()[:32]}"'


def live(version: Callable[..., str]) -> Callable[[View], View]:
    """A view of a live part: `version(**url_arguments)` must change whenever its answer does."""

    def tag(request: HttpRequest, **arguments: object) -> str:
        return etag(version(**arguments))

    def decorate(view: View) -> View:
        return require_safe(cache_control(no_cache=True)(condition(etag_func=tag)(view)))

    return decorate
