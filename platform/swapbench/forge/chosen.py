"""The forge that SWAPBENCH_FORGE names."""

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from swapbench.forge.contract import Forge


def forge() -> Forge:
    """The configured forge. Raises ImproperlyConfigured where SWAPBENCH_FORGE names none."""
    if settings.SWAPBENCH_FORGE == "local":
        from swapbench.forge.local import LocalForge

        return LocalForge(settings.SWAPBENCH_LOCAL_FORGE)
    if settings.SWAPBENCH_FORGE == "github":
        from swapbench.forge.github import GitHubForge

        return GitHubForge(**settings.SWAPBENCH_GITHUB)
    raise ImproperlyConfigured(f"SWAPBENCH_FORGE is {settings.SWAPBENCH_FORGE!r}; it must be 'local' or 'github'.")
