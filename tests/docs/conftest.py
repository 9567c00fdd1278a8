"""The pages and what follows them."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest

from saccade_testing.docs import brought as _brought
from saccade_testing.docs import commandline as _commandline
from saccade_testing.docs import pages as _pages
from saccade_testing.docs import session as _session

REAL_MODEL = {"docs/text-models.md"}
"""Pages about the checkpoint of ``make real-model``."""


@pytest.fixture(scope="session")
def markdown() -> ModuleType:
    """The module of pages: ``ROOT``, ``files``, ``pages`` and what they hold."""
    return _pages


@pytest.fixture(scope="session")
def session() -> ModuleType:
    """The module of sessions: ``Session``, ``commands``, ``says``."""
    return _session


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of the process that runs ``saccade`` for all pages."""
    running = _session.Commands(_pages.ROOT, tmp_path_factory.mktemp("commands"))
    yield running.wait()
    running.end()


@pytest.fixture(scope="session")
def brought() -> Mapping[str, Callable[[Path], None]]:
    """By page, what makes the files that its readers have already."""
    return _brought.BROUGHT


@pytest.fixture(scope="session")
def commandline() -> ModuleType:
    """The module that reads commands: ``mistakes``, ``wrong_in``, ``options``, ``variables``."""
    return _commandline


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that asks for a ``page`` every page; those on a real model take minutes."""
    if "page" not in metafunc.fixturenames:
        return
    long = [pytest.mark.long, pytest.mark.timeout(3600)]
    runs = "commands" in metafunc.fixturenames
    given = [
        pytest.param(page, id=page.path, marks=long if runs and page.path in REAL_MODEL else ())
        for page in _pages.pages()
    ]
    metafunc.parametrize("page", given)
