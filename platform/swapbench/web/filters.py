"""Query parameters of the pages: parsed and checked, refused with a sentence that says what was expected."""

from collections.abc import Collection
from dataclasses import dataclass

from django.core.exceptions import BadRequest
from django.http import QueryDict
from django.utils.translation import gettext as _

from swapbench.web import wording

PAGE_SIZE = 50
LONGEST = 120


@dataclass(frozen=True)
class SubmissionFilter:
    """What the list of submissions is narrowed to; "" means all."""

    kind: str = ""
    quality_class: str = ""
    state: str = ""
    status: str = ""
    author: str = ""
    page: int = 1

    @property
    def narrows(self) -> bool:
        return bool(self.kind or self.quality_class or self.state or self.status or self.author)


def text(query: QueryDict, name: str) -> str:
    """A short text without control characters. Raises BadRequest."""
    value = query.get(name, "").strip()
    if len(value) > LONGEST:
        raise BadRequest(
            _("“%(name)s” has %(length)d characters; at most %(most)d are taken.")
            % {"name": name, "length": len(value), "most": LONGEST}
        )
    if any(ord(character) < 32 for character in value):
        raise BadRequest(_("“%(name)s” holds control characters; plain text is expected.") % {"name": name})
    return value


def choice(query: QueryDict, name: str, choices: Collection[str]) -> str:
    """One of `choices`, or "". Raises BadRequest that lists them."""
    value = query.get(name, "")
    if value and value not in choices:
        raise BadRequest(
            _("“%(name)s” cannot be “%(value)s”. It is one of: %(choices)s.")
            % {"name": name, "value": value[:40], "choices": ", ".join(choices)}
        )
    return value


def number(query: QueryDict, name: str, default: int) -> int:
    """A positive whole number below a million. Raises BadRequest."""
    value = query.get(name, "")
    if not value:
        return default
    if not (value.isascii() and value.isdigit() and int(value[:7]) > 0 and len(value) <= 6):
        raise BadRequest(
            _("“%(name)s” must be a whole number from 1 to 999999, not “%(value)s”.")
            % {"name": name, "value": value[:40]}
        )
    return int(value)


def submission_filter(query: QueryDict, states: Collection[str]) -> SubmissionFilter:
    """The filter of the list of submissions. Raises BadRequest."""
    return SubmissionFilter(
        kind=choice(query, "kind", list(wording.KINDS)),
        quality_class=choice(query, "class", list(wording.CLASSES)),
        state=choice(query, "state", states),
        status=choice(query, "status", list(wording.STATUSES)),
        author=text(query, "author"),
        page=number(query, "page", 1),
    )
