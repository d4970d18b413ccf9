"""Levels are found out by trying them, and `doctor` says what is missing and how to mend it."""

import os
import tempfile
from pathlib import Path

import pytest

from workers import sandbox
from workers.sandbox import NoLevel, bubblewrap, cgroups, doctor, isolation, kernel


@pytest.fixture
def fresh() -> object:
    """Levels found out anew, before and after."""
    sandbox.levels.cache_clear()
    isolation._rlimits.cache_clear()
    yield
    sandbox.levels.cache_clear()
    isolation._rlimits.cache_clear()


def test_levels_are_listed_strongest_first_with_reasons() -> None:
    levels = sandbox.levels()
    assert [level.name for level in levels] == ["full", "rlimits", "user", "none"]
    for level in levels:
        assert level.available == (not level.why_not)
        assert level.available == (not level.how_to_mend)


def test_best_level_is_the_first_that_is_available() -> None:
    assert sandbox.best_level({}) == next(level.name for level in sandbox.levels() if level.available)


def test_weaker_level_can_be_demanded_and_none_can_not(weakest: str) -> None:
    assert sandbox.best_level({"SWAPBENCH_ISOLATION": weakest}) == weakest
    for wrong in ("none", "strong"):
        with pytest.raises(NoLevel, match=f"SWAPBENCH_ISOLATION is '{wrong}'; it may be full, rlimits, user"):
            sandbox.best_level({"SWAPBENCH_ISOLATION": wrong})


def test_level_that_is_demanded_and_missing_is_an_error() -> None:
    missing = [level for level in sandbox.levels() if not level.available]
    assert missing
    with pytest.raises(NoLevel) as error:
        sandbox.best_level({"SWAPBENCH_ISOLATION": missing[0].name})
    assert missing[0].why_not in str(error.value)
    assert missing[0].how_to_mend in str(error.value)


@pytest.mark.usefixtures("fresh")
def test_without_bubblewrap_there_is_no_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap, "find", lambda: None)
    with pytest.raises(NoLevel, match="bubblewrap is not installed; apt install bubblewrap"):
        sandbox.best_level({})
    named = {check.name: check for check in doctor.checks()}
    assert (named["bubblewrap"].ok, named["bubblewrap"].how_to_mend[:22]) == (False, "apt install bubblewrap")


@pytest.mark.usefixtures("fresh")
def test_bubblewrap_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not below tmp_path, which pytest closes to the uid that starts bubblewrap.
    with tempfile.TemporaryDirectory(prefix="swapbench-bwrap-") as folder:
        os.chmod(folder, 0o755)
        program = Path(folder, "bwrap")
        program.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
        program.chmod(0o755)
        monkeypatch.setattr(bubblewrap, "find", lambda: str(program))
        with pytest.raises(NoLevel, match="bwrap: No permissions to create new namespace"):
            sandbox.best_level({})


@pytest.mark.usefixtures("fresh")
def test_without_control_groups_full_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "find", lambda: cgroups.Unavailable("none is writable", "mount one"))
    full = sandbox.levels()[0]
    assert not full.available
    groups = next(check for check in doctor.checks() if check.name == "control groups")
    assert (groups.ok, groups.found, groups.how_to_mend) == (
        False,
        "none is writable; memory is watched from outside instead",
        "mount one",
    )


@pytest.mark.parametrize(
    ("setting", "refusing", "allowing", "mend"),
    [
        ("kernel.unprivileged_userns_clone", "0", "1", "sysctl -w kernel.unprivileged_userns_clone=1"),
        ("user.max_user_namespaces", "0", "15000", "sysctl -w user.max_user_namespaces=15000"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0", "AppArmor profile"),
    ],
)
def test_kernel_settings_that_refuse_namespaces_are_named(
    tmp_path: Path, setting: str, refusing: str, allowing: str, mend: str
) -> None:
    file = tmp_path / setting.replace(".", "/")
    file.parent.mkdir(parents=True)
    for value, ok in ((refusing, False), (allowing, True)):
        file.write_text(value + "\n")
        check = {check.name: check for check in kernel.user_namespaces(tmp_path, privileged=False)}[setting]
        assert (check.ok, check.found) == (ok, f"is {value}")
        assert (mend in check.how_to_mend) != ok


def test_settings_that_refuse_the_unprivileged_only_do_not_hinder_root(tmp_path: Path) -> None:
    (tmp_path / "kernel").mkdir()
    (tmp_path / "user").mkdir()
    (tmp_path / "user/max_user_namespaces").write_text("15000\n")
    assert not kernel.refuses_the_unprivileged(tmp_path)
    (tmp_path / "kernel/apparmor_restrict_unprivileged_userns").write_text("1\n")
    assert kernel.refuses_the_unprivileged(tmp_path)
    assert all(check.ok for check in kernel.user_namespaces(tmp_path, privileged=True))
    assert not all(check.ok for check in kernel.user_namespaces(tmp_path, privileged=False))


def test_kernel_without_user_namespaces_is_named(tmp_path: Path) -> None:
    assert [check.found for check in kernel.user_namespaces(tmp_path)] == ["the kernel has no user namespaces"]


def test_every_failed_check_says_how_to_mend_it() -> None:
    for check in doctor.checks():
        assert check.ok == (not check.how_to_mend), check
