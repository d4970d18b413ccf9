"""Any process may be killed at any moment: nothing is lost, nothing is counted twice. Real processes, real signals."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from django.conf import settings as django_settings
from django.db import connection

from swapbench.intake.models import Delivery
from swapbench.mergequeue.models import Build, QueueEntry
from swapbench.submissions.models import Attempt, Result, Submission, Verdict, Worker
from tests.platform.cast import Repository, source

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(170)]

ROOT = Path(__file__).resolve().parents[2]
SWIFT = "engine/attention/swift.py"
PATIENCE = 90


def until(holds: Callable[[], Any], what: str) -> Any:
    """Waits for what other processes bring about; fails with `what` where they do not."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        if found := holds():
            return found
        time.sleep(0.1)
    rows = list(Attempt.objects.order_by("id").values_list("id", "build", "n", "state", "worker", "sent", "failure"))
    seen = list(Worker.objects.values_list("name", "state", "attempt"))
    pytest.fail(f"It did not happen in {PATIENCE} s: {what}. Attempts: {rows}. Workers: {seen}.")


def database_url() -> str:
    """The test database's address, for other processes."""
    named = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{named['NAME']}"
    return f"postgres://{named['USER']}:{named['PASSWORD']}@{named['HOST']}:{named['PORT']}/{named['NAME']}"


class Stage:
    """Starts the platform's processes below a folder, each in a process group of its own, and ends them."""

    def __init__(self, folder: Path, rules: dict[str, Any]) -> None:
        self.folder = folder
        self.go = folder / "go"
        self.machine_class = rules["machine_classes"][0]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")]),
            "DJANGO_SETTINGS_MODULE": "swapbench.settings",
            "DATABASE_URL": database_url(),
            "SWAPBENCH_VAR": str(folder),
            "SWAPBENCH_POLICY": json.dumps(rules),
            "SWAPBENCH_MACHINE_CLASS": self.machine_class,
            "FAKE_GO": str(self.go),
        }

    def start(self, *command: str, **environment: str) -> "subprocess.Popen[bytes]":
        log = (self.folder / "processes.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=self._environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        self._processes.append(process)
        return process

    def control(self) -> "subprocess.Popen[bytes]":
        return self.start("manage.py", "control", "--turn", "0.2")

    def worker(self, name: str) -> "subprocess.Popen[bytes]":
        queue = f"judge.{self.machine_class}"
        worker = ("-m", "celery", "-A", "tests.platform.fakeworker", "worker", "--pool", "solo", "-l", "warning")
        return self.start(*worker, "-Q", queue, "-n", f"{name}@test", FAKE_NAME=name)

    def kill(self, process: "subprocess.Popen[bytes]") -> None:
        """kill -9, and no goodbyes."""
        process.send_signal(signal.SIGKILL)
        process.wait()

    def end(self) -> None:
        for process in self._processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            process.wait()


@pytest.fixture
def stage(tmp_path: Path, repository: Repository, rules: Any) -> Iterator[Stage]:
    # A class of its own: with Redis, an earlier test's messages may still lie in the queue of another.
    rules(lease_seconds=6.0, resend_seconds=8.0, machine_classes=[f"cpu-{secrets.token_hex(4)}"])
    made = Stage(tmp_path, django_settings.SWAPBENCH_POLICY)
    yield made
    made.end()


def running() -> Attempt | None:
    return Attempt.objects.filter(state=Attempt.State.RUNNING, stage="performance").first()


def judged() -> bool:
    return Submission.objects.filter(state=Submission.State.JUDGED).exists()


def assert_counted_once() -> None:
    verdict = Verdict.objects.get()
    assert (verdict.status, verdict.speed, verdict.current) == ("passed", "faster", True)
    assert Submission.objects.count() == 1
    assert Attempt.objects.filter(submission__isnull=False, state=Attempt.State.FINISHED).count() == 1
    assert Result.objects.count() == 8
    assert Attempt.objects.filter(submission__isnull=False, state__in=["queued", "running"]).count() == 0


def test_kill_9_of_the_worker_in_the_middle_of_an_attempt(stage: Stage, repository: Repository) -> None:
    repository.pull(1, {SWIFT: source()})
    stage.control()
    worker = stage.worker("first")
    until(running, "the attempt runs")
    stage.kill(worker)
    stage.worker("second")
    until(
        lambda: Attempt.objects.filter(n=2, state=Attempt.State.RUNNING).first(), "another worker has the next attempt"
    )
    assert Attempt.objects.get(n=1).state == Attempt.State.LOST
    assert not Verdict.objects.exists()
    stage.go.touch()
    until(judged, "the submission is judged")
    assert_counted_once()
    until(lambda: QueueEntry.objects.filter(state=QueueEntry.State.MERGED).first(), "it is merged")
    assert repository.show("main", SWIFT) == source()


def test_kill_9_of_the_control_process_while_an_attempt_runs_and_ends(stage: Stage, repository: Repository) -> None:
    repository.pull(1, {SWIFT: source()})
    control = stage.control()
    stage.worker("first")
    until(running, "the attempt runs")
    stage.kill(control)
    stage.go.touch()  # The outcome is sent while nobody listens.
    time.sleep(1)
    control = stage.control()
    until(judged, "the submission is judged")
    assert_counted_once()
    stage.kill(control)  # In the middle of the queue's work, whatever it is at.
    stage.control()
    until(lambda: QueueEntry.objects.filter(state=QueueEntry.State.MERGED).first(), "it is merged")
    assert Build.objects.filter(state=Build.State.MERGED).count() == 1
    assert_counted_once()


def test_two_control_processes_do_everything_once(stage: Stage, repository: Repository) -> None:
    for n, name in enumerate(("one", "two", "three"), 1):
        repository.pull(n, {f"engine/attention/{name}.py": source(name=name, body=f"x = {n}")}, author=f"author{n}")
    stage.go.touch()
    stage.control()
    stage.control()
    stage.worker("first")
    until(lambda: QueueEntry.objects.filter(state=QueueEntry.State.MERGED).count() == 3, "all are merged")
    assert Verdict.objects.count() == Submission.objects.count() == 3
    assert Result.objects.count() == 24
    assert Build.objects.filter(state=Build.State.MERGED).count() == 3
    for name in ("one", "two", "three"):
        assert repository.show("main", f"engine/attention/{name}.py")


def test_a_worker_that_comes_back_after_its_lease_cannot_record(stage: Stage, repository: Repository) -> None:
    repository.pull(1, {SWIFT: source()})
    stage.control()
    first = stage.worker("first")
    until(running, "the attempt runs")
    first.send_signal(signal.SIGSTOP)  # A machine that hangs, and comes back.
    stage.worker("second")
    until(lambda: Attempt.objects.filter(n=2, state=Attempt.State.RUNNING).first(), "the next attempt runs")
    stage.go.touch()
    first.send_signal(signal.SIGCONT)
    until(judged, "the submission is judged")
    until(lambda: QueueEntry.objects.filter(state=QueueEntry.State.MERGED).first(), "it is merged")
    assert Attempt.objects.get(n=1, submission__isnull=False).state == Attempt.State.LOST
    assert_counted_once()


def test_kill_9_of_the_web_process_during_intake(stage: Stage, tmp_path: Path) -> None:
    secret, repository = "s3cret", "example/engine"
    port = 20000 + secrets.randbelow(20000)
    web = ("-m", "waitress", f"--listen=127.0.0.1:{port}", "swapbench.wsgi:application")
    environment = {"SWAPBENCH_GITHUB_WEBHOOK_SECRET": secret, "SWAPBENCH_GITHUB_REPOSITORY": repository}
    from tests.platform.deliveries import pull_request_delivery

    def deliver() -> int:
        body, headers = pull_request_delivery(secret, repository, "delivery-1")
        try:
            with urlopen(Request(f"http://127.0.0.1:{port}/hooks/github", body, headers), timeout=10) as answer:
                return int(answer.status)
        except (URLError, OSError):
            return 0

    process = stage.start(*web, **environment)
    until(lambda: deliver() == 202, "the first delivery is taken")
    for _ in range(3):
        stage.kill(process)
        assert deliver() == 0  # GitHub delivers again what was not answered.
        process = stage.start(*web, **environment)
        until(lambda: deliver() == 202, "the delivery is taken again")
    assert [deliver() for _ in range(10)] == [202] * 10
    assert Delivery.objects.get().state == Delivery.State.RECEIVED
