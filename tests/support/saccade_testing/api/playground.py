"""Steps of a person at the playground, and an engine that says something else under a plan."""

import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from playwright.sync_api import Page, expect

from saccade_server.engine.request import EngineOutput, GenerateRequest
from saccade_testing.api.browsing import Tab
from saccade_testing.api.fakes import FakeEngine
from saccade_testing.api.server import Server, start_server

PLAIN, EDITED = "a red circle, a blue square", "a red circle, a blue cross"


ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
"""Of processes that import what the tests do."""


class TwoAnswers(FakeEngine):
    """Says something else under a plan."""

    def _outputs(self, request: GenerateRequest) -> AsyncIterator[EngineOutput]:
        said = PLAIN if request.plan is None else EDITED
        return FakeEngine._outputs(replace(self, answer=said), request)


def start_two_answers() -> Server:
    """A server with it, and a profile; whoever calls this stops it."""
    profiles = {"calm": {"interventions": [{"method": "pai"}]}}
    return start_server(TwoAnswers(delay=0.001), profiles=profiles)


def open_page(tab: Tab, url: str) -> Page:
    """Go there and wait for the picture."""
    page = tab.page
    page.goto(url)
    page.wait_for_selector(".frame img")
    return page


def add(page: Page, method: str) -> None:
    count = page.locator(".method").count()
    page.click("text=Add a method")
    page.click(f".adder b >> text='{method}'")
    expect(page.locator(".method")).to_have_count(count + 1)


def ask(page: Page) -> None:
    page.click(".go button")


def answered(page: Page, name: str = "plain") -> None:
    expect(page.locator(f".pane-{name} .progress")).to_contain_text("ended")


def shown_body(page: Page) -> dict[str, Any]:
    """The body in the page's curl command, which is the edited request."""
    code = page.inner_text(".code pre")
    body: dict[str, Any] = json.loads(
        code.split("<<JSON\n")[1].removesuffix("\nJSON").replace("\\$", "$")
    )
    return body
