"""The page at /, on the demo model: the gaze moves, and the page shows it."""

import re

from playwright.sync_api import Page, expect

CROSS = (1 / 64, 20 / 64, 22 / 64, 42 / 64)
"""Where the cross is in the picture that the page begins with, which the model calls a square."""


def draw(page: Page, box: tuple[float, ...]) -> None:
    """Draw a box, given in fractions of the picture's sides, with the mouse."""
    frame = page.locator(".frame").bounding_box()
    assert frame is not None
    x, y = ((frame["x"], frame["width"]), (frame["y"], frame["height"]))
    corners = [(x[0] + x[1] * box[k], y[0] + y[1] * box[k + 1]) for k in (0, 2)]
    page.mouse.move(*corners[0])
    page.mouse.down()
    page.mouse.move(*corners[1], steps=4)
    page.mouse.up()


def shares(page: Page) -> list[float]:
    """Of the plain and of the edited token: the attention within the region, in percent."""
    captions = page.locator(".side figcaption b").all_inner_texts()
    return [float(re.match(r"[\d.]+", text)[0]) for text in captions]


def test_a_region_is_drawn_and_the_gaze_moves_there_and_away(demo, tab):
    page = tab.page
    page.goto(demo.url)
    page.wait_for_selector(".frame img")
    draw(page, CROSS)
    page.click(".go button")
    expect(page.locator(".pane-plain .tokens")).to_contain_text("a blue square")
    expect(page.locator(".pane-edited .tokens")).to_contain_text("a blue cross")
    expect(page.locator(".receipt")).to_contain_text("look_at applied")
    page.locator(".pane-edited .token", has_text="cross").first.hover()
    expect(page.locator(".heat canvas")).to_have_count(2)
    plain, edited = shares(page)
    assert edited > plain + 5
    # A layer of its own, sinks as they are; the numbers are others.
    page.locator(".controls input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    assert shares(page) != [plain, edited]
    expect(page.locator(".masses svg").first.locator("rect")).to_have_count(6 * 5)
    # Every layer's classes share all of the attention.
    rows = page.locator(".masses table").first.locator("tbody tr").all_inner_texts()
    for row in rows:
        numbers = [int(n) for n in re.findall(r"(\d+) %", row)]
        assert len(numbers) == 5
        assert abs(sum(numbers) - 100) <= 3
    page.click("text=Look away")
    page.click(".go button")
    expect(page.locator(".go button")).to_have_text("Ask")
    page.locator(".pane-edited .token", has_text="blue").first.hover()
    expect(page.locator(".heat i.away")).to_be_visible()
    plain, edited = shares(page)
    assert edited < plain
    assert tab.origins == {demo.url}
    assert tab.errors() == []
