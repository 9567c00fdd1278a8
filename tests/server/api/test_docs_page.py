"""/docs: what it sends, and what a person sees in a real browser."""

import re

import pytest
from playwright.sync_api import Page, expect

from saccade_server.api.openapi.page import DOCS, DOCS_PARTS
from saccade_testing.api.server import Server, start_server


@pytest.fixture(scope="module")
def keyed():
    server = start_server(api_keys=("user-key",), admin_keys=("root-key",))
    yield server
    server.stop()


def test_the_page_needs_no_key_and_names_nothing_of_the_server(keyed):
    for path in DOCS_PARTS:
        answer = keyed.http.get(path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert not re.search(r"https?:|\*|unsafe-eval", policy)
    ours = [keyed.http.get(path).text for path in DOCS_PARTS if "swagger" not in path]
    for word in ("saccade", keyed.settings.served_model_name, "0."):
        assert not [text for text in ours if word in text.lower()]
    assert not re.search(r"(src|href)=\"(https?:)?//", ours[0])


def test_the_document_needs_a_key(keyed):
    assert keyed.http.get("/openapi.json").status_code == 401
    key = {"authorization": "Bearer user-key"}
    assert keyed.http.get("/openapi.json", headers=key).status_code == 200


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
    assert tab.origins == {keyed.url}
    # The browser itself reports the two refusals; nothing else went wrong.
    assert tab.errors("401") == []


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
    assert tab.errors() == []
