"""Delivery: a webhook delivery, recorded before anything else is done with it."""

from django.db import models
from django.utils.translation import gettext_lazy as _


class Delivery(models.Model):
    """One delivery of the forge. Its id is unique, so that ten of the same are one; it is kept until it was dealt with."""

    class State(models.TextChoices):
        RECEIVED = "received", _("received")
        DONE = "done", _("dealt with")
        IGNORED = "ignored", _("of no interest")
        FAILED = "failed", _("could not be dealt with")

    forge = models.CharField(max_length=120)
    delivery = models.CharField(max_length=100)
    event = models.CharField(max_length=60)
    payload = models.JSONField()
    digest = models.CharField(max_length=64, blank=True, default="")
    """Of a comment, the SHA-256 of the delivery's body: its id is not signed, so that the same may come under another."""
    state = models.CharField(max_length=10, choices=State, default=State.RECEIVED)
    tries = models.PositiveIntegerField(default=0)
    note = models.TextField(blank=True, default="")
    received_at = models.DateTimeField(auto_now_add=True)
    done_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["forge", "delivery"], name="one_row_per_delivery"),
            models.UniqueConstraint(
                fields=["forge", "digest"], condition=~models.Q(digest=""), name="one_row_per_comment"
            ),
        ]
        indexes = [models.Index(fields=["state"])]
        ordering = ["-id"]
        verbose_name_plural = "deliveries"

    def __str__(self) -> str:
        return f"{self.event} {self.delivery} ({self.state})"
