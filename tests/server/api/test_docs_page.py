"""/docs: what it sends, and what a person sees in a real browser."""

import os
import re
import shutil
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from saccade_server.api.openapi.page import DOCS, PARTS
from saccade_testing.api.server import Server, start_server

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def keyed():
    server = start_server(api_keys=("user-key",), admin_keys=("root-key",))
    yield server
    server.stop()


def test_the_page_needs_no_key_and_names_nothing_of_the_server(keyed):
    for path in PARTS:
        answer = keyed.http.get(path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert not re.search(r"https?:|\*|unsafe-eval", policy)
    ours = [keyed.http.get(path).text for path in PARTS if "swagger" not in path]
    for word in ("saccade", keyed.settings.served_model_name, "0."):
        assert not [text for text in ours if word in text.lower()]
    assert not re.search(r"(src|href)=\"(https?:)?//", ours[0])


def test_the_document_needs_a_key(keyed):
    assert keyed.http.get("/openapi.json").status_code == 401
    key = {"authorization": "Bearer user-key"}
    assert keyed.http.get("/openapi.json", headers=key).status_code == 200


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        assert "CI" not in os.environ, ".ci/run installs a browser"
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser) -> Iterator[SimpleNamespace]:
    """A new tab; what it asked for, and what its console said."""
    context = browser.new_context()
    page = context.new_page()
    asked, said = [], []
    page.on("request", lambda request: asked.append(request))
    page.on("console", lambda message: said.append((message.type, message.text)))
    page.on("pageerror", lambda error: said.append(("error", str(error))))
    yield SimpleNamespace(page=page, context=context, asked=asked, said=said)
    context.close()


def says(page: Page, text: str) -> None:
    expect(page.locator("#state")).to_contain_text(text)


def open_with(page: Page, key: str) -> None:
    page.fill("#key", key)
    page.click("text=Use in this tab")


def call(page: Page, operation: str) -> None:
    """Open an operation and execute it as it stands."""
    block = page.locator(f"#{operation}")
    block.locator("button.opblock-summary-control").click()
    block.locator("button.execute").click()


def test_a_user_reads_the_document_and_calls_with_a_key(keyed, tab):
    page = tab.page
    page.goto(keyed.url + DOCS)
    says(page, "needed")
    open_with(page, "wrong")
    says(page, "not known")
    open_with(page, "user-key")
    page.wait_for_selector('[data-path="/v1/chat/completions"]')
    with page.expect_response("**/v1/models") as models:
        call(page, "operations-Models-list_models_v1_models_get")
    assert models.value.status == 200
    assert models.value.request.headers["authorization"] == "Bearer user-key"
    page.wait_for_selector(f".responses-table >> text={keyed.settings.served_model_name}")
    origins = {re.match(r"\w+://[^/]*", request.url) for request in tab.asked}
    hosts = {found[0] for found in origins if found}
    assert hosts == {keyed.url}
    # The browser itself reports the two refusals; nothing else went wrong.
    assert [text for kind, text in tab.said if kind == "error" and "401" not in text] == []


def test_the_key_is_the_tabs_own(keyed, tab):
    page = tab.page
    page.goto(keyed.url + DOCS)
    open_with(page, "user-key")
    page.wait_for_selector('[data-path="/v1/chat/completions"]')
    other = tab.context.new_page()
    other.goto(keyed.url + DOCS)
    says(other, "needed")
    assert page.evaluate("localStorage.length") == 0
    assert tab.context.cookies() == []
    page.click("text=Forget")
    says(page, "needed")


def test_a_server_without_keys_shows_its_document_at_once(server: Server, tab):
    tab.page.goto(server.url + DOCS)
    tab.page.wait_for_selector('[data-path="/v1/interventions/validate"]')
    assert [text for kind, text in tab.said if kind == "error"] == []
