"""The pages and what follows them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from saccade_testing.docs import pages, session

LONG = pages.REAL_MODEL | {"docs/calibration.md"}


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of the process that runs ``saccade`` for all pages."""
    running = session.Commands(pages.ROOT, tmp_path_factory.mktemp("commands"))
    yield running.wait()
    running.end()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that asks for a ``page`` every page; some take long."""
    if "page" not in metafunc.fixturenames:
        return
    long = [pytest.mark.long, pytest.mark.timeout(3600)]
    runs = "commands" in metafunc.fixturenames
    given = [
        pytest.param(page, id=page.path, marks=long if runs and page.path in LONG else ())
        for page in pages.pages()
    ]
    metafunc.parametrize("page", given)
