"""What surrounds the judge's own pytest does not reach the suites."""

import os

import pytest

from workers.suites.session import own_settings


def test_the_environment_of_the_judge_does_not_steer_a_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "--collect-only")
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "")
    before = dict(os.environ)
    with own_settings():
        assert {name: value for name, value in os.environ.items() if name.startswith("PYTEST_")} == {
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"
        }
    assert dict(os.environ) == before


def test_it_is_put_back_when_a_suite_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "-q")
    with pytest.raises(KeyboardInterrupt), own_settings():
        raise KeyboardInterrupt
    assert os.environ["PYTEST_ADDOPTS"] == "-q"
    assert "PYTEST_DISABLE_PLUGIN_AUTOLOAD" not in os.environ
