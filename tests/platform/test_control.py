"""The control plane as a whole: imports, turns, reports, policy, doctor, and the demo as real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import OperationalError
from django.db.models import F
from django.utils import timezone

from swapbench.control import tasks
from swapbench.control import turn as turns
from swapbench.control.turn import Clock, turn
from swapbench.demo.localforge import make_forge
from swapbench.demo.samples import SampleError, read_samples
from swapbench.forge.contract import ForgeError, PublishedReport
from swapbench.forge.local import LocalForge
from swapbench.reports.models import Report
from swapbench.reports.publish import publish
from swapbench.submissions.models import AuditEvent
from swapbench.submissions.policy import policy
from swapbench.submissions.record import record
from tests.platform.cast import Repository, implementation, outcome_of, signed, source, taken_in
from workers.protocol import Reason

ROOT = Path(__file__).resolve().parents[2]
SWIFT = "engine/attention/swift.py"
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "platform")])


def test_the_control_plane_never_imports_torch(tmp_path: Path) -> None:
    code = """
import importlib, pkgutil, sys, django
django.setup()
import swapbench
for module in pkgutil.walk_packages(swapbench.__path__, "swapbench."):
    if ".migrations." not in module.name:
        importlib.import_module(module.name)
print(sorted(name for name in sys.modules if name in ("torch", "engine.slots.kind", "workers.judge", "workers.attempt")))
"""
    environment = os.environ | {
        "PYTHONPATH": PATHS,
        "DJANGO_SETTINGS_MODULE": "swapbench.settings",
        "SWAPBENCH_VAR": str(tmp_path),
    }
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert said.stdout.strip() == "[]", said.stderr


@pytest.mark.django_db
def test_migrations_hold_all_that_the_models_say() -> None:
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)


@pytest.mark.parametrize("given", [{"machine_classes": []}, {"alpha": 2}, {"no_such": 1}, {"batch_size": 9}])
def test_a_policy_that_is_none_is_named(given: dict[str, Any], settings: Any) -> None:
    settings.SWAPBENCH_POLICY = given
    with pytest.raises(ImproperlyConfigured, match="SWAPBENCH_POLICY"):
        policy()


@pytest.mark.django_db
def test_a_step_that_fails_does_not_hold_up_the_others(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("Nobody foresaw this.")

    repository.pull(1, {SWIFT: source()})
    monkeypatch.setattr(turns, "tick", fails)
    sent: list[str] = []
    turn(Clock(), lambda machine_class, job, expires: sent.append(job))
    assert len(sent) == 1
    assert "Nobody foresaw this." in caplog.text


def test_an_outcome_is_not_lost_to_a_database_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def away_at_first(attempt: str, outcome: str, signature: str) -> bool:
        taken.append(attempt)
        if len(taken) < 3:
            raise OperationalError("The server closed the connection.")
        return True

    monkeypatch.setattr(tasks.record, "record", away_at_first)
    assert tasks.attempt_finished.apply(args=("7", "{}", "")).successful()
    assert taken == ["7", "7", "7"]


@pytest.mark.django_db
def test_a_report_says_what_is_and_is_told_once(repository: Repository, forge: LocalForge) -> None:
    repository.pull(1, {SWIFT: source()})
    submission = taken_in(forge, 1)
    assert [publish(forge), publish(forge)] == [1, 0]
    assert Report.objects.get().conclusion == ""
    attempt = submission.attempts.get()
    nasty = Reason("causal", "Sees the future <script>alert(1)</script> @everyone [x](http://x)\n# Title", stage="unit")
    found = implementation(status="failed", speed="not_measured", reasons=[nasty])
    record(*signed(attempt, outcome_of(attempt, found, status="failed")))
    assert [publish(forge), publish(forge)] == [1, 0]
    report = Report.objects.get()
    assert (report.conclusion, report.title) == ("failure", "swift: failed")
    assert "<script>" not in report.text.replace("\\<script\\>", "")
    assert "\n# Title" not in report.text
    assert f"/submissions/{submission.pk}" in report.text
    assert "What to do" in report.text


@pytest.mark.django_db
def test_what_the_forge_could_not_be_told_is_told_later(
    repository: Repository, forge: LocalForge, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.pull(1, {SWIFT: source()})
    taken_in(forge, 1)
    asked: list[int] = []

    def away(self: LocalForge, number: int, *_: object, **__: object) -> PublishedReport:
        asked.append(number)
        raise ForgeError("Nobody answers.")

    with monkeypatch.context() as patch:
        patch.setattr(LocalForge, "publish", away)
        for n in range(1, 21):
            assert [publish(forge), publish(forge)] == [0, 0]
            assert len(asked) == n
            Report.objects.update(tried_at=timezone.now() - timedelta(hours=1))
    assert [publish(forge), publish(forge)] == [1, 0]
    assert Report.objects.get().failures == 0


@pytest.mark.django_db
def test_a_report_catches_up_with_what_happened_long_ago(repository: Repository, forge: LocalForge) -> None:
    repository.pull(1, {SWIFT: source()})
    submission = taken_in(forge, 1)
    publish(forge)
    attempt = submission.attempts.get()
    record(*signed(attempt, outcome_of(attempt, implementation())))
    # Nothing was published since: the process was away for a day.
    day = timedelta(days=1)
    AuditEvent.objects.update(at=F("at") - day)
    Report.objects.update(checked_at=F("checked_at") - day)
    assert publish(forge) == 1
    assert Report.objects.get().conclusion == "success"


@pytest.mark.django_db
def test_two_processes_tell_the_forge_once(
    repository: Repository, forge: LocalForge, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.pull(1, {SWIFT: source()})
    taken_in(forge, 1)
    told = LocalForge.publish
    times: list[int] = []

    def while_another_publishes(self: LocalForge, number: int, *rest: Any, **named: Any) -> PublishedReport:
        times.append(number)
        assert publish(forge) == 0
        return told(self, number, *rest, **named)

    monkeypatch.setattr(LocalForge, "publish", while_another_publishes)
    assert publish(forge) == 1
    assert times == [1]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("files", "conclusion"),
    [({SWIFT: "x = 1"}, "failure"), ({"README.md": "Mine."}, "action_required")],
)
def test_reports_of_what_is_not_judged(
    files: dict[str, Any], conclusion: str, repository: Repository, forge: LocalForge
) -> None:
    repository.pull(1, files)
    submission = taken_in(forge, 1)
    publish(forge)
    assert Report.objects.get().conclusion == conclusion
    assert submission.reasons[0]["next_step"].split(":")[0][:20] in Report.objects.get().text.replace("\\", "")


@pytest.mark.django_db
def test_the_doctor_names_what_is_missing(settings: Any, tmp_path: Path) -> None:
    settings.SWAPBENCH_LOCAL_FORGE = tmp_path / "nowhere"
    said = StringIO()
    with pytest.raises(CommandError, match="forge"):
        call_command("doctor", platform_only=True, stdout=said)
    assert "manage.py demo" in " ".join(said.getvalue().replace("│", " ").split())


# --- The demo --------------------------------------------------------------------------------------------------------


def sample(folder: Path, number: int, name: str, author: str, files: dict[str, str], **expected: object) -> None:
    where = folder / f"{number:02d}-{name}"
    lines = [f'title = "{name}"', f'author_name = "{author}"', f'author_email = "{author}@example.org"', "[expected]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in expected.items()]
    (where / "files").mkdir(parents=True, exist_ok=True)
    (where / "pull.toml").write_text("\n".join(lines))
    for path, text in files.items():
        (where / "files" / path).parent.mkdir(parents=True, exist_ok=True)
        (where / "files" / path).write_text(text)


@pytest.fixture
def pulls(tmp_path: Path) -> Path:
    folder = tmp_path / "pulls"
    sample(folder, 1, "swift", "alice", {SWIFT: source()}, status="passed", speed="faster", queued=True)
    sample(folder, 2, "headless", "bob", {"engine/attention/headless.py": "x = 1\n"}, status="refused", says="header")
    sample(folder, 3, "outside", "charlie", {"engine/generate.py": "x = 1\n"}, status="waiting", queued=False)
    return folder


def test_the_forge_of_the_demo_is_made_once_and_brought_up_to_date(tmp_path: Path, pulls: Path) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "engine").mkdir(parents=True)
    (checkout / "engine" / "generate.py").write_text("x = 0\n")
    forge = Repository(tmp_path / "demo.git")
    make_forge(forge.path, checkout, read_samples(pulls), "main")
    before = [forge.sha(f"refs/pull/{n}/head") for n in (1, 2, 3)] + [forge.sha("refs/heads/main")]
    make_forge(forge.path, checkout, read_samples(pulls), "main")
    assert [forge.sha(f"refs/pull/{n}/head") for n in (1, 2, 3)] + [forge.sha("refs/heads/main")] == before
    assert forge.show("main", "engine/generate.py") == "x = 0\n"
    merged = forge.commit("refs/heads/main", "Merged", {SWIFT: source()})
    (checkout / "engine" / "generate.py").write_text("x = 2\n")
    sample(pulls, 3, "outside", "charlie", {"engine/generate.py": "x = 3\n"}, status="waiting")
    make_forge(forge.path, checkout, read_samples(pulls), "main")
    assert forge.sha("refs/heads/main^") == merged
    assert forge.show("main", "engine/generate.py") == "x = 2\n"
    assert forge.show("main", SWIFT) == source()
    assert forge.sha("refs/pull/1/head") == before[0]
    assert forge.sha("refs/pull/3/head") != before[2]


@pytest.mark.parametrize("text", ["", "title = 1", "not toml", 'title = "a"\nauthor_name = "b"'])
def test_a_sample_that_cannot_be_read_is_named(text: str, pulls: Path) -> None:
    (pulls / "01-swift" / "pull.toml").write_text(text)
    with pytest.raises(SampleError, match="01-swift"):
        read_samples(pulls)


WORKER = "-m celery -A tests.platform.fakeworker worker -Q judge.cpu-test --pool solo -l warning"


def demo(folder: Path, pulls: Path, *options: str, worker: str = WORKER) -> "subprocess.Popen[str]":
    environment = {
        key: value for key, value in os.environ.items() if key not in ("DATABASE_URL", "SWAPBENCH_BROKER_URL")
    }
    environment |= {
        "SWAPBENCH_VAR": str(folder),
        "SWAPBENCH_MACHINE_CLASS": "cpu-test",
        "FAKE_GO": str(folder / "go"),
        "PYTHONPATH": PATHS,
    }
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    return subprocess.Popen(
        [sys.executable, "manage.py", "demo", "--pulls", str(pulls), "--worker", worker, *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def processes_below(folder: Path) -> list[str]:
    """Commands of living processes whose environment names the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"SWAPBENCH_VAR={folder}\0".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


def test_the_demo_runs_once_and_again_without_counting_twice(tmp_path: Path, pulls: Path) -> None:
    folder, report = tmp_path / "state", tmp_path / "report.json"
    folder.mkdir()
    (folder / "go").touch()
    for run in (1, 2):
        process = demo(folder, pulls, "--once", "--json", str(report))
        said, _ = process.communicate(timeout=150)
        assert process.returncode == 0, said
        found = {pull["number"]: pull for pull in json.loads(report.read_text())["pulls"]}
        assert [found[n]["verdict"] for n in (1, 2, 3)] == ["passed", "refused", "waiting"]
        assert (found[1]["queue"], found[1]["speed"], found[1]["attempts"]) == ("merged", "faster", 1), run
        assert processes_below(folder) == []
    assert Repository(folder / "forge.git").show("main", SWIFT) == source()


def test_ctrl_c_ends_all_that_the_demo_started(tmp_path: Path, pulls: Path, request: pytest.FixtureRequest) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    process = demo(folder, pulls, "--once")
    request.addfinalizer(process.kill)  # Its children die with it.
    ends = time.monotonic() + 90
    while not any("-m celery -A tests" in command and "demo" not in command for command in processes_below(folder)):
        assert time.monotonic() < ends, "The worker was not started."
        time.sleep(0.1)
    second = demo(folder, pulls, "--once")
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 1
    assert "running already" in said
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Run it again" in said
    assert processes_below(folder) == []


def test_a_worker_that_cannot_run_is_said_and_not_waited_for(tmp_path: Path, pulls: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    process = demo(folder, pulls, "--once", worker="-m no_such_module")
    said, _ = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "The judge worker ended 4 times" in said
    assert "No module named no_such_module" in said
    assert processes_below(folder) == []
