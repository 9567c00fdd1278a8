"""The playground at /: what it sends, and what a person does with it in a real browser."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

import saccade_server
from saccade_server.api.playground.page import PLAYGROUND_PARTS
from saccade_server.models.reasoning import Markers, Thought
from saccade_testing.api.bodies import MODEL, encode
from saccade_testing.api.browsing import Tab
from saccade_testing.api.fakes import INFO, FakeEngine
from saccade_testing.api.playground import (
    ENVIRONMENT,
    PLAIN,
    add,
    answered,
    ask,
    open_page,
    shown_body,
    start_two_answers,
)
from saccade_testing.api.server import wait_for

OWN = [path for path in PLAYGROUND_PARTS if "/vendor/" not in path and not path.endswith(".png")]
KEYED = {"api_keys": ("user-key",)}


@pytest.fixture(scope="module")
def two() -> Iterator:
    server = start_two_answers()
    yield server
    server.stop()


# What is sent.


def test_the_page_needs_no_key_and_names_nothing_of_the_server(make_server):
    server = make_server(**KEYED)
    for path in PLAYGROUND_PARTS:
        answer = server.http.get(path)
        assert answer.status_code == 200, path
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self' 'sha256-")
        assert not re.search(r"https?:|\*|unsafe", policy)
        assert server.http.head(path).headers["content-length"] == str(len(answer.content))
    assert server.http.get("/v1/models").status_code == 401
    for path in OWN:
        text = server.http.get(path).text
        for word in (MODEL, "saccade-demo", saccade_server.__version__):
            assert word not in text, path
        assert "http" not in re.sub(r"data:|http-equiv", "", text), path


def test_every_module_and_style_that_the_page_names_is_sent(make_server):
    server = make_server()
    for path in OWN:
        text = server.http.get(path).text
        folder = path.rpartition("/")[0]
        named = re.findall(r'from "\./([\w./]+)"', text)
        wanted = {f"{folder}/{name}" for name in named}
        wanted |= {f"/{name}" for name in re.findall(r'(?:src|href)="(playground/[^"]+)"', text)}
        assert wanted <= set(PLAYGROUND_PARTS), path


def test_the_page_has_the_layers_of_other_routes(make_server):
    server = make_server()
    assert server.http.get("/", headers={"host": "pages.example"}).status_code == 421
    other = {"origin": "https://pages.example"}
    assert "access-control-allow-origin" not in server.http.get("/", headers=other).headers
    assert server.http.post("/", json={}).status_code == 405


# What a person does.


def test_two_answers_side_by_side_with_their_differences(two, tab):
    page = open_page(tab, two.url)
    add(page, "pai")
    page.fill("#question", "What is there?")
    ask(page)
    answered(page, "plain")
    answered(page, "edited")
    assert page.inner_text(".pane-plain .tokens").strip() == PLAIN
    assert page.locator(".pane-plain mark").all_inner_texts() == list("square")
    assert page.locator(".pane-edited mark").all_inner_texts() == list("cross")
    expect(page.locator(".receipt")).to_contain_text("pai applied: ")
    plain, edited = two.engine.requests[-2:]
    assert {plain.plan is None, edited.plan is None} == {True, False}
    assert plain.sampling.temperature == edited.sampling.temperature == 0
    # A token's alternatives, beside those of the token at its place in the other answer.
    page.locator(".pane-edited .token", has_text="r").nth(2).hover()
    expect(page.locator(".side-edited h4")).to_have_text("edited: r")
    expect(page.locator(".side-plain .alternatives li").first).to_contain_text("A")
    assert tab.origins == {two.url}
    assert tab.errors() == []


def test_reasoning_is_told_from_the_answer(make_server, tab):
    server = make_server(FakeEngine(answer="{Hm}Yes"))
    server.prompts.markers = Markers("{", "}", (ord("{"), ord("}")))
    server.prompts.thought = Thought.FREE
    page = open_page(tab, server.url)
    page.fill("#question", "Why?")
    ask(page)
    answered(page)
    thoughts = page.locator(".pane-plain .token.thought")
    assert "".join(thoughts.all_inner_texts()) == "Hm}"  # markers are tokens like all others
    assert page.inner_text(".pane-plain .tokens") == "{Hm}Yes"
    assert tab.errors() == []


def test_everything_by_keyboard(two, tab):
    page = open_page(tab, two.url)
    page.focus("#question")
    page.keyboard.press("Control+A")
    page.keyboard.type("What is there?")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.type("paying more")
    page.keyboard.press("Enter")
    expect(page.locator(".method h3")).to_be_focused()
    reach(page, "interventions-0-alpha")
    page.keyboard.type("0.7")
    page.keyboard.press("Enter")
    answered(page, "edited")
    assert shown_body(page)["interventions"] == [{"method": "pai", "alpha": 0.7}]
    until(page, "e => e.getAttribute('role') === 'listbox'")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(page.locator(".pane-plain .token.at")).to_have_attribute("data-index", "3")
    expect(page.locator(".pane-edited .token.at")).to_have_attribute("data-index", "3")
    page.keyboard.press("End")
    expect(page.locator(".pane-plain .token.at")).to_have_attribute("data-index", "26")
    assert tab.errors() == []


def reach(page: Page, part: str) -> None:
    until(page, f"e => (e.id || '').includes({json.dumps(part)})")


def until(page: Page, condition: str) -> None:
    """Press Tab until what has the focus is as wanted; it is seen to have it."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate(f"({condition})(document.activeElement)"):
            style = "getComputedStyle(document.activeElement).outlineStyle"
            assert page.evaluate(style) != "none"
            return
    pytest.fail(f"never reached {condition}")


def test_a_key_is_asked_for_and_kept_for_the_tab(make_server, tab):
    server = make_server(**KEYED)
    page = tab.page
    page.goto(server.url)
    expect(page.locator("[role=alert]")).to_contain_text("only with a key")
    page.fill("#key", "wrong")
    page.click("text=Use in this tab")
    expect(page.locator("[role=alert]")).to_contain_text("not known")
    page.fill("#key", "user-key")
    page.keyboard.press("Enter")
    page.wait_for_selector(".frame img")
    ask(page)
    answered(page)
    code = page.inner_text(".code pre")
    assert "$SACCADE_API_KEY" in code
    assert "user-key" not in page.content()
    assert page.evaluate("localStorage.length") == 0
    assert tab.context.cookies() == []
    other = tab.new_page()
    other.goto(server.url)
    expect(other.locator("[role=alert]")).to_contain_text("only with a key")
    page.reload()
    page.wait_for_selector(".frame img")
    page.click("text=Forget the key")
    expect(page.locator("[role=alert]")).to_contain_text("only with a key")
    assert tab.errors("401") == []


def test_a_mistake_stands_beside_its_field(two, tab):
    page = open_page(tab, two.url)
    add(page, "vcd")
    add(page, "pai")
    page.fill("#field-interventions-1-alpha", "lots")
    ask(page)
    wrong = page.locator(".field.wrong")
    expect(wrong).to_have_count(1)
    expect(wrong.locator(".problem")).to_contain_text("interventions[1].alpha")
    expect(page.locator(".problem", has_text="interventions")).to_have_count(1)
    page.click(".trouble button")
    expect(page.locator("#field-interventions-1-alpha")).to_be_focused()
    alpha = page.locator("#field-interventions-1-alpha")
    expect(alpha).to_have_attribute("aria-invalid", "true")
    described = alpha.get_attribute("aria-describedby").split()
    assert "number" in page.inner_text(f"#{described[-1]}")
    answered(page, "plain")  # the plain answer has no mistake in it
    page.fill("#field-interventions-1-alpha", "0.5")
    page.fill("#field-max_tokens", "0.5")
    ask(page)
    expect(page.locator(".field.wrong label")).to_have_text("max tokens")
    # What lies in closed settings is opened.
    page.fill("#field-max_tokens", "8")
    page.locator(".method").first.locator("summary").click()
    page.fill("#field-interventions-0-noise_step", "-3")
    page.locator(".method").first.locator("summary").click()
    ask(page)
    expect(page.locator("#field-interventions-0-noise_step")).to_be_visible()
    assert tab.errors("400") == []


def test_methods_are_ordered_and_removed(two, tab):
    page = open_page(tab, two.url)
    add(page, "pai")
    add(page, "vcd")
    page.click("[aria-label='Move vcd up']")
    assert [entry["method"] for entry in shown_body(page)["interventions"]] == ["vcd", "pai"]
    expect(page.locator(".method h3").first).to_be_focused()
    page.click("[aria-label='Remove vcd']")
    assert [entry["method"] for entry in shown_body(page)["interventions"]] == ["pai"]
    # A profile runs its own methods unless some are named.
    page.select_option("#field-model", f"{MODEL}+calm")
    page.click("[aria-label='Remove pai']")
    expect(page.locator(".methods .note")).to_contain_text("profile calm runs pai")
    assert "interventions" not in shown_body(page)
    ask(page)
    answered(page, "edited")
    expect(page.locator(".receipt")).to_contain_text("pai")


def test_the_reader_stops_an_answer(make_server, tab):
    server = make_server(FakeEngine(answer="word " * 200, delay=0.02))
    page = open_page(tab, server.url)
    ask(page)
    expect(page.locator(".pane-plain .token")).not_to_have_count(0)
    page.click(".go button")
    expect(page.locator(".pane-plain .progress")).to_contain_text("stopped")
    wait_for(lambda: not server.engine.running)
    expect(page.locator(".go button")).to_have_text("Ask")
    assert tab.errors() == []


def test_a_server_that_dies_while_it_streams(tab):
    command = [sys.executable, "-m", "saccade_testing.api.alone", "0.02"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as server:
        try:
            tab.page.goto(server.stdout.readline().strip())
            page = tab.page
            page.wait_for_selector(".frame img")
            ask(page)
            expect(page.locator(".pane-plain .token").nth(5)).to_be_visible()
        finally:
            server.send_signal(signal.SIGKILL)
    expect(page.locator(".trouble")).to_contain_text("in the middle of")
    expect(page.locator(".trouble")).to_contain_text("kept")
    assert page.inner_text(".pane-plain .tokens").startswith("one t")
    page.click("text=Ask again")
    expect(page.locator(".trouble")).to_contain_text("does not answer")
    assert tab.errors("ERR_") == []


def test_a_model_of_text_has_no_picture(make_server, tab):
    info = msgspec.structs.replace(INFO, accepts_images=False)
    server = make_server(FakeEngine(info=info))
    page = tab.page
    page.goto(server.url)
    page.fill("#question", "Hi")
    assert page.locator(".picture").count() == 0
    ask(page)
    answered(page)
    assert isinstance(shown_body(page)["messages"][0]["content"], str)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_three_widths(two, browser, tmp_path, scheme):
    tab = Tab(browser, color_scheme=scheme, viewport={"width": 360, "height": 740})
    page = open_page(tab, two.url)
    add(page, "steering")
    page.locator(".method summary").click()
    path = tmp_path / "wide.png"
    path.write_bytes(encode(Image.new("RGB", (900, 300), "red")))
    page.set_input_files("input[type=file]", path)
    ask(page)
    answered(page)
    for width in (360, 768, 1280):
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator(".go button").is_visible()
        assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(NAMELESS) == []
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (min(int(n) for n in re.findall(r"\d+", paper)) < 60) == (scheme == "dark")
    page.select_option(".theme select", "light" if scheme == "dark" else "dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != paper
    assert tab.errors("400") == []
    tab.context.close()


def test_a_region_is_drawn_moved_turned_and_removed(two, tab):
    page = open_page(tab, two.url)
    frame = page.locator(".frame").bounding_box()
    corner = frame["x"] + 2, frame["y"] + 2
    page.mouse.move(*corner)
    page.mouse.down()
    page.mouse.move(corner[0] + frame["width"] / 4, corner[1] + frame["height"] / 2, steps=3)
    page.mouse.up()
    expect(page.locator(".method h3")).to_have_text("look_at")
    (entry,) = shown_body(page)["interventions"]
    assert entry == {"method": "look_at", "regions": entry["regions"]}
    left, top, right, bottom = entry["regions"][0]["box"]  # of 64 x 64 pixels
    assert (right - left, bottom - top) == (pytest.approx(16, abs=0.3), pytest.approx(32, abs=0.3))
    page.click("text=Look away")
    assert shown_body(page)["interventions"][0]["strength"] == -2
    # The same by keyboard.
    page.focus(".region")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    (moved,) = shown_body(page)["interventions"][0]["regions"]
    assert moved["box"] == pytest.approx([left + 1.28, top, right + 1.28, bottom + 1.28], abs=0.11)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert shown_body(page)["interventions"][0]["regions"][0]["box"][0] == 0, "it stays inside"
    ask(page)
    answered(page, "edited")
    expect(page.locator(".receipt")).to_contain_text("look_at applied")
    page.focus("text=Add a region")
    page.keyboard.press("Enter")
    expect(page.locator(".region").nth(1)).to_be_focused()
    page.keyboard.press("Delete")
    page.focus(".region")
    page.keyboard.press("Delete")
    expect(page.locator(".method")).to_have_count(0)
    assert "interventions" not in shown_body(page) or not shown_body(page)["interventions"]
    assert tab.errors() == []


def test_pictures_come_from_files_the_clipboard_and_drops(two, tab, tmp_path):
    page = open_page(tab, two.url)
    path = tmp_path / "mine.png"
    path.write_bytes(encode(Image.new("RGB", (30, 20), "red")))
    page.set_input_files("input[type=file]", path)
    picture = page.locator(".frame img")
    expect(picture).to_have_attribute("alt", "The picture: mine.png")
    for kind, name, field in (
        ("paste", "pasted", "clipboardData"),
        ("drop", "gone", "dataTransfer"),
    ):
        page.evaluate(BRING, [kind, f"{name}.png", field])
        expect(picture).to_have_attribute("alt", f"The picture: {name}.png")
    (tmp_path / "not.png").write_bytes(b"no picture")
    page.set_input_files("input[type=file]", tmp_path / "not.png")
    expect(page.locator(".picture [role=alert]")).to_contain_text("no picture")
    page.click("text=No picture")
    assert isinstance(shown_body(page)["messages"][0]["content"], str)


BRING = """async ([kind, name, field]) => {
  const canvas = new OffscreenCanvas(9, 7);
  canvas.getContext("2d").fillRect(0, 0, 9, 7);
  const data = new DataTransfer();
  data.items.add(new File([await canvas.convertToBlob()], name, { type: "image/png" }));
  document.dispatchEvent(Object.assign(new Event(kind, { cancelable: true }), { [field]: data }));
}"""


OUTSIDE = """() => [...document.querySelectorAll("section *")].filter((e) => {
  const inside = e.closest(".picture, .method, .pane");
  return inside && !e.closest(".hidden, .number") &&
    e.getBoundingClientRect().right > inside.getBoundingClientRect().right + 1;
}).map((e) => e.outerHTML.slice(0, 200))"""
"""What sticks out of the part of the page that it belongs to."""

NAMELESS = """() => [...document.querySelectorAll("button, input, select, textarea, [tabindex]")]
  .filter((e) => !e.ariaLabel && !e.textContent.trim() && !e.labels?.length)
  .filter((e) => !e.querySelector("img[alt]"))
  .map((e) => e.outerHTML.slice(0, 200))"""
"""What can be used and has no name for who cannot see it."""
