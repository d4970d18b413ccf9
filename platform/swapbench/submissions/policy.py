"""What the people who run this instance decided. Overrides come from SWAPBENCH_POLICY (see settings)."""

import os
import platform
from typing import Annotated, Any

import msgspec
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from workers.protocol import LEASE_SECONDS, SuiteName
from workers.suites.version import suite_version as installed_suite_version


def _machine_class_here() -> str:
    """As `workers.judge.machine` names a machine without accelerator."""
    return os.environ.get("SWAPBENCH_MACHINE_CLASS") or (
        "cpu-arm" if platform.machine() in ("aarch64", "arm64") else "cpu-x86"
    )


MachineClass = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]


class ControlPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Defaults suit a public instance; the demo asks for no approvals, since its pull requests are its own."""

    machine_classes: Annotated[tuple[MachineClass, ...], msgspec.Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: (_machine_class_here(),)
    )
    """Every submission is judged on each of these."""
    suite_version: str = ""
    """Overrides the version of the suites that are installed here."""
    alpha: Annotated[float, msgspec.Meta(gt=0, le=0.5)] = 0.05
    """Chance of a false gate that one author has on one track, over all tries."""
    relevance: Annotated[float, msgspec.Meta(ge=0, le=0.5)] = 0.005
    isolation_levels: tuple[str, ...] = ("full", "rlimits", "user")
    max_pairs: Annotated[int, msgspec.Meta(ge=8, le=48)] = 24
    sentinels: Annotated[int, msgspec.Meta(ge=0, le=8)] = 1
    """Pairs of base with itself after each decision, from which the page Error rates says what each machine makes of identical code."""
    deadline_seconds: Annotated[float, msgspec.Meta(gt=0)] = 900.0
    lease_seconds: Annotated[float, msgspec.Meta(gt=0)] = LEASE_SECONDS
    replacements: Annotated[int, msgspec.Meta(ge=0, le=10)] = 2
    """How often an attempt that was lost through no fault of the contributor is replaced."""
    resend_seconds: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    """After how long a message that no worker answered is sent again."""
    max_files: Annotated[int, msgspec.Meta(ge=1)] = 20
    """Slot files that one pull request may add or change."""
    max_changes: Annotated[int, msgspec.Meta(ge=1)] = 300
    """Changed files of any kind."""
    first_time_needs_approval: bool = True
    """Whether a maintainer must approve the SHA before code of somebody new is run."""
    merge_approvals: Annotated[int, msgspec.Meta(ge=0, le=10)] = 1
    """Maintainers who must approve before the queue merges. 0 means that unread code merges itself."""
    maintainers: tuple[str, ...] = ()
    """Who maintains a local forge; GitHub is asked who may write."""
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=4)] = 1
    """Entries that one build may hold, where they touch different files."""
    build_suites: tuple[SuiteName, ...] = ("unit", "integration")
    poll_seconds: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    """How often the forge is asked for what no delivery told of; a local forge is asked more often."""


def policy() -> ControlPolicy:
    """The policy that is in force. Raises ImproperlyConfigured where SWAPBENCH_POLICY is not one."""
    given: dict[str, Any] = dict(settings.SWAPBENCH_POLICY)
    try:
        return msgspec.convert(given, ControlPolicy)
    except msgspec.ValidationError as error:
        raise ImproperlyConfigured(f"SWAPBENCH_POLICY is not valid: {error}.") from None


def suite_version() -> str:
    """The version of the suites that attempts are made with from now on."""
    return policy().suite_version or installed_suite_version()
