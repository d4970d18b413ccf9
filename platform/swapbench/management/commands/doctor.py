"""`manage.py doctor`: what this instance has and lacks, and how to mend it."""

from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from rich.console import Console
from rich.table import Table
from rich.text import Text

from swapbench.forge.chosen import forge
from swapbench.submissions.dispatch import workers_alive
from swapbench.submissions.policy import policy
from workers.doctor import Finding
from workers.doctor import checks as machine_checks


class Command(BaseCommand):
    help = "Say what this instance has and lacks: database, policy, forge and credentials, workers, and the machine."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--platform-only", action="store_true", help="leave the checks of this machine out")

    def handle(self, *, platform_only: bool, **options: Any) -> None:
        found = list(platform_checks())
        if not platform_only:
            found += list(machine_checks())
        table = Table(title="manage.py doctor", title_justify="left")
        for column in ("", "what", "found", "how to mend"):
            table.add_column(column, overflow="fold")
        for item in found:
            mark = Text("ok", style="green") if item.ok else Text("lacks", style="red" if item.needed else "yellow")
            table.add_row(mark, Text(item.name), Text(item.found), Text("" if item.ok else item.mend))
        Console(file=self.stdout._out, highlight=False).print(table)
        lacking = [item.name for item in found if item.needed and not item.ok]
        if lacking:
            raise CommandError(f"Needed, and not in order: {', '.join(lacking)}.")


def platform_checks() -> Iterator[Finding]:
    """Database, policy, forge and workers, each with what was found and how to mend it."""
    database = _database()
    yield database
    yield _policy()
    yield _forge()
    if database.ok:
        yield from _workers()


def _database() -> Finding:
    where = f"{connection.vendor}: {connection.settings_dict['NAME']}"
    try:
        executor = MigrationExecutor(connection)
        pending = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except (DatabaseError, ImproperlyConfigured) as error:
        return Finding("database", False, f"{where}: {error}".strip(), "check DATABASE_URL, and that the server runs")
    if pending:
        return Finding("database", False, f"{where}: {len(pending)} migrations are pending", "python manage.py migrate")
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            mode = cursor.execute("PRAGMA journal_mode").fetchone()[0]
        return Finding(
            "database", mode == "wal", f"{where} ({mode})", "put var/ on a local disk: WAL needs shared memory"
        )
    return Finding("database", True, where)


def _policy() -> Finding:
    try:
        rules = policy()
    except ImproperlyConfigured as error:
        return Finding("policy", False, str(error), "mend SWAPBENCH_POLICY")
    read = (
        "unread code merges itself" if rules.merge_approvals == 0 else f"{rules.merge_approvals} approval(s) to merge"
    )
    return Finding("policy", True, f"{', '.join(rules.machine_classes)}; {read}")


def _forge() -> Finding:
    try:
        chosen = forge()
        problems = chosen.problems()
    except ImproperlyConfigured as error:
        return Finding("forge", False, str(error), "set SWAPBENCH_FORGE to local or github")
    if problems:
        return Finding("forge", False, chosen.name, " ".join(problems))
    return Finding("forge", True, f"{chosen.name}, branch {settings.SWAPBENCH_BRANCH}")


def _workers() -> Iterator[Finding]:
    for machine_class in policy().machine_classes:
        alive = workers_alive(machine_class)
        mend = f"swapbench worker --machine-class {machine_class}, on such a machine"
        yield Finding(f"workers of {machine_class}", alive > 0, f"{alive} alive", mend, needed=False)
