"""The pages and what follows them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from saccade_testing.docs import pages, session

REAL_MODEL = {"docs/text-models.md"}
"""Pages about the checkpoint of ``make real-model``."""


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of the process that runs ``saccade`` for all pages."""
    running = session.Commands(pages.ROOT, tmp_path_factory.mktemp("commands"))
    yield running.wait()
    running.end()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that asks for a ``page`` every page; those on a real model take minutes."""
    if "page" not in metafunc.fixturenames:
        return
    long = [pytest.mark.long, pytest.mark.timeout(3600)]
    runs = "commands" in metafunc.fixturenames
    given = [
        pytest.param(page, id=page.path, marks=long if runs and page.path in REAL_MODEL else ())
        for page in pages.pages()
    ]
    metafunc.parametrize("page", given)
