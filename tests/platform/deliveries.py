"""Deliveries in the form in which GitHub sends them, signed."""

import hashlib
import hmac
import json
from typing import Any


def signed_delivery(secret: str, event: str, delivery: str, payload: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a delivery."""
    body = json.dumps(payload).encode()
    signature = "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return body, {
        "Content-Type": "application/json",
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": delivery,
        "X-Hub-Signature-256": signature,
    }


def pull_request_delivery(
    secret: str, repository: str, delivery: str, number: int = 1, action: str = "opened"
) -> tuple[bytes, dict[str, str]]:
    """A delivery about a pull request; what it says beyond the number is not read."""
    payload = {"action": action, "number": number, "repository": {"full_name": repository}}
    return signed_delivery(secret, "pull_request", delivery, payload)
