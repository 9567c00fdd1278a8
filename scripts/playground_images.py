"""Pictures of the playground for the README: a server, a browser, a region, a screenshot.

    python scripts/playground_images.py [--out docs/images]

It needs Chromium and what the tests are run with. The demo model says what it says, so the pictures
change only with the page.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PORT = 8765
URL = f"http://127.0.0.1:{PORT}/"
REGION = (1 / 64, 20 / 64, 22 / 64, 42 / 64)
"""The cross, in fractions of the picture's sides."""

SHOTS = {
    "playground-light": {"viewport": {"width": 1280, "height": 1000}, "color_scheme": "light"},
    "playground-dark": {"viewport": {"width": 420, "height": 1040}, "color_scheme": "dark"},
}
MOST_BYTES = 150_000


@contextmanager
def server() -> Iterator[None]:
    """A server of the demo model, ready."""
    command = [sys.executable, "-c", "from saccade_server.cli import main; main()"]
    options = ["serve", "--port", str(PORT), "--no-self-test", "--log-level", "error"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
    try:
        for _ in range(120):
            time.sleep(0.5)
            try:
                urllib.request.urlopen(URL + "ready").close()
                break
            except OSError:
                continue
        yield
    finally:
        process.terminate()
        process.wait()


def look(page: Page) -> None:
    """Ask with a region on the cross, and point at the word that it changed."""
    page.goto(URL)
    frame = page.locator(".frame")
    frame.locator("img").wait_for()
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    assert box is not None
    x = [box["x"] + box["width"] * part for part in REGION[::2]]
    y = [box["y"] + box["height"] * part for part in REGION[1::2]]
    page.mouse.move(x[0], y[0])
    page.mouse.down()
    page.mouse.move(x[1], y[1], steps=4)
    page.mouse.up()
    page.locator(".method").wait_for()
    page.click(".go button")
    page.locator(".receipt").wait_for()
    page.locator(".pane-edited .token", has_text="cross").first.click()
    page.locator(".heat canvas").first.wait_for()


def shoot(browser: Browser, name: str, folder: Path) -> Path:
    """Save one picture."""
    context = browser.new_context(**SHOTS[name], device_scale_factor=1)
    page = context.new_page()
    look(page)
    panes = page.locator(".panes")
    if SHOTS[name]["viewport"]["width"] < 1080:
        panes.evaluate("panes => panes.scrollIntoView()")
    else:
        page.evaluate("() => scrollTo(0, 0)")
    page.wait_for_timeout(300)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    context.close()
    path = folder / f"{name}.webp"
    picture.save(path, quality=85, method=6)
    assert path.stat().st_size < MOST_BYTES, f"{path} has {path.stat().st_size} bytes"
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with server(), sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name in SHOTS:
            print(shoot(browser, name, folder))
        browser.close()


if __name__ == "__main__":
    main()
