"""A browser's tab as tests look at it: the page, what it asked for, what its console said."""

import re
from typing import Any

from playwright.sync_api import Browser, Page

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
"""Options under which Chromium asks for nothing by itself."""


class Tab:
    """A tab with a storage of its own.

    Args:
        browser: it is opened in this one.
        options: of the context, such as ``viewport`` and ``color_scheme``.
    """

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.asked: list[str] = []
        self.said: list[tuple[str, str]] = []
        self.page = self.new_page()

    def new_page(self) -> Page:
        """Open another page beside the first."""
        page = self.context.new_page()
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda message: self.said.append((message.type, message.text)))
        page.on("pageerror", lambda error: self.said.append(("error", str(error))))
        return page

    @property
    def origins(self) -> set[str]:
        """Every scheme and host that a page of this tab asked; data of its own are none."""
        found = {re.match(r"\w+://[^/]*", url) for url in self.asked}
        return {match[0] for match in found if match}

    def errors(self, *expected: str) -> list[str]:
        """What the console called an error or a warning, but for texts that hold one of these."""
        told = [text for kind, text in self.said if kind in ("error", "warning")]
        return [text for text in told if not any(word in text for word in expected)]
