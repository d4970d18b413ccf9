"""`manage.py compilecatalogs`: makes the .mo files of translations without GNU gettext being installed."""

from pathlib import Path
from typing import Any

import polib
from django.conf import settings
from django.core.management.base import BaseCommand


def compile_catalogs() -> list[Path]:
    """Compiles every catalog of LOCALE_PATHS that is newer than its .mo; returns the .mo files that were written.

    Each is put in place whole, so that processes that start at the same time never read half of one.
    """
    written = []
    for source in sorted(path for folder in settings.LOCALE_PATHS for path in Path(folder).glob("*/LC_MESSAGES/*.po")):
        target = source.with_suffix(".mo")
        if target.exists() and target.stat().st_mtime >= source.stat().st_mtime:
            continue
        fresh = target.with_suffix(".mo.new")
        polib.pofile(str(source)).save_as_mofile(str(fresh))
        fresh.replace(target)
        written.append(target)
    return written


class Command(BaseCommand):
    help = "Compile the translations (locale/*/LC_MESSAGES/*.po) where they have changed."
    requires_system_checks = []

    def handle(self, *_: Any, **options: Any) -> None:
        for path in compile_catalogs():
            if options["verbosity"] > 0:
                self.stdout.write(f"Compiled {path}")
