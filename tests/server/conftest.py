"""Families of tiny models, and a browser, for the tests of the server."""

import os
import shutil
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, sync_playwright

from saccade_testing import processors, tiny
from saccade_testing.api.browsing import QUIET, Tab
from saccade_testing.processors import PromptFolder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models are slower with more."""
    torch.set_num_threads(1)


@pytest.fixture(params=tiny.BUILDERS)
def family(request: pytest.FixtureRequest) -> str:
    """Every family that is served: a test that takes it runs for each."""
    return str(request.param)


@pytest.fixture(params=[name for name in tiny.BUILDERS if name not in tiny.TOWERS])
def decoder_family(request: pytest.FixtureRequest) -> str:
    """Every family whose decoder or way of showing images no other has; towers do not matter."""
    return str(request.param)


@pytest.fixture(scope="session")
def prompt_folder(tmp_path_factory: pytest.TempPathFactory) -> PromptFolder:
    """Folders with all but weights, each made once, and what was saved in them."""

    @cache
    def made(family: str) -> tuple[str, Any]:
        folder = tmp_path_factory.mktemp(family)
        return str(folder), processors.save(family, folder)

    return made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window; not for the session, whose other tests have loops of their own."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        assert "CI" not in os.environ, ".ci/run installs a browser"
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    """A new tab that remembers what it asked for and what its console said."""
    tab = Tab(browser)
    yield tab
    tab.context.close()
