"""The address that GitHub delivers to. It records a delivery and answers; `deliveries.process` deals with it later.

That way the web process may be killed at any moment: GitHub delivers again what was not answered, and the reconcile poll
takes up what no delivery told of.
"""

import hashlib
import hmac
import json
import logging
import re

from django.conf import settings
from django.db import IntegrityError
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from swapbench.intake.models import Delivery

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 25 * 1024 * 1024
"""GitHub caps payloads at 25 MB (docs.github.com, "Webhook events and payloads")."""
MAX_DEPTH = 50
DELIVERY_ID = re.compile(r"[0-9a-zA-Z-]{1,100}")
EVENT = re.compile(r"[a-z_]{1,60}")
EVENTS_OF_INTEREST = ("pull_request", "issue_comment", "push", "ping")


def signature_holds(secret: str, body: bytes, header: str) -> bool:
    """Whether `header` (X-Hub-Signature-256) is "sha256=" and the HMAC-SHA-256 of `body`, compared in constant time."""
    expected = "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected.encode(), header.encode("utf-8", "replace"))


def _refuse(status: int, sentence: str) -> JsonResponse:
    return JsonResponse({"error": sentence}, status=status)


def _is_deeper(value: object, most: int) -> bool:
    level = [value]
    for _ in range(most + 1):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return bool(level)


@csrf_exempt
@require_POST
def github_webhook(request: HttpRequest) -> JsonResponse:
    """202 once the delivery is recorded, also where it was recorded before; 4xx with a sentence where it is not taken."""
    secret = settings.SWAPBENCH_GITHUB["webhook_secret"]
    if not secret:
        return _refuse(404, "This instance takes no webhooks: SWAPBENCH_GITHUB_WEBHOOK_SECRET is not set.")
    try:
        length = int(request.headers.get("Content-Length") or 0)
    except ValueError:
        return _refuse(400, "Content-Length is not a number.")
    if length > MAX_BODY_BYTES:
        return _refuse(413, f"The delivery has {length:,} bytes; at most {MAX_BODY_BYTES:,} are taken.")
    body = request.read(MAX_BODY_BYTES + 1)
    if len(body) > MAX_BODY_BYTES:
        return _refuse(413, f"The delivery has more than {MAX_BODY_BYTES:,} bytes.")
    if not signature_holds(secret, body, request.headers.get("X-Hub-Signature-256", "")):
        return _refuse(403, "The signature in X-Hub-Signature-256 does not match the body and the webhook's secret.")

    delivery = request.headers.get("X-GitHub-Delivery", "")
    event = request.headers.get("X-GitHub-Event", "")
    if not DELIVERY_ID.fullmatch(delivery) or not EVENT.fullmatch(event):
        return _refuse(400, "X-GitHub-Delivery and X-GitHub-Event must name the delivery and its event.")
    try:
        # Databases take no NUL, no lone surrogates and no NaN, which Python's JSON allows.
        payload = json.loads(body.decode().replace("\\u0000", "\\ufffd"))
        json.dumps(payload, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return _refuse(400, "The body is not JSON; set the webhook's content type to application/json.")
    if not isinstance(payload, dict):
        return _refuse(400, "The body must be a JSON object.")
    if _is_deeper(payload, MAX_DEPTH):
        return _refuse(400, f"The body is nested more than {MAX_DEPTH} deep.")
    if event not in EVENTS_OF_INTEREST:
        return JsonResponse({"taken": False, "note": f"The event {event!r} is of no interest here."}, status=202)

    repository = payload.get("repository")
    name = repository.get("full_name") if isinstance(repository, dict) else None
    ours = settings.SWAPBENCH_GITHUB["repository"]
    if event != "ping" and name != ours:
        return _refuse(422, f"The delivery is about {name!r}; this instance serves {ours!r}.")
    digest = hashlib.sha256(body).hexdigest() if event == "issue_comment" else ""
    try:
        _, new = Delivery.objects.get_or_create(
            forge=f"github:{ours}",
            delivery=delivery,
            defaults={"event": event, "payload": payload, "digest": digest},
        )
    except IntegrityError:
        new = False  # The same comment came under another id: two webhooks of one repository, or a replay.
    return JsonResponse({"taken": True, "new": new}, status=202)
