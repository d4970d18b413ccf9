"""Parametrises every suite by what its bench offers: cases, properties, turns."""

import pytest

from workers.suites.session import Reporter


def _reporter(config: pytest.Config) -> Reporter:
    return next(plugin for plugin in config.pluginmanager.get_plugins() if isinstance(plugin, Reporter))


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> object:
    """What the suite's tests judge with."""
    return _reporter(request.config).bench


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes one of the bench's parameters runs once for each of its values."""
    bench = _reporter(metafunc.config).bench
    for name, values in bench.parameters().items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values, ids=[str(getattr(value, "name", value)) for value in values])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test whose parameter has no values for this kind does not belong to it; pytest would report it as skipped."""
    items[:] = [item for item in items if not _is_of_nothing(item)]


def _is_of_nothing(item: pytest.Item) -> bool:
    skip = item.get_closest_marker("skip")
    return skip is not None and str(skip.kwargs.get("reason", "")).startswith("got empty parameter set")
