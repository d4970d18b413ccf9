"""The page that describes the API, made from its own OpenAPI document; no script, no foreign style."""

from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from swapbench.api.endpoints import api


@dataclass(frozen=True)
class Operation:
    path: str
    summary: str
    parameters: list[dict[str, Any]]
    answer: str


def operations() -> list[Operation]:
    """The operations of the API in the order in which they are declared."""
    document = api.get_openapi_schema(path_prefix="/api/")
    found = []
    for path, methods in document["paths"].items():
        operation = methods["get"]
        content = operation["responses"].get(200, {}).get("content", {})
        reference = content.get("application/json", {}).get("schema", {})
        named = reference.get("$ref") or reference.get("items", {}).get("$ref", "")
        answer = named.rsplit("/", 1)[-1] + ("[]" if "items" in reference else "")
        found.append(Operation(path, operation["summary"], operation.get("parameters", []), answer))
    return found


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    return render(request, "pages/api.html", {"section": "api", "operations": operations(), "api": api})
