"""Agents' frameworks, unchanged against the server, each in an environment of its own."""

import re

import pytest

from saccade_testing.docs import pages
from saccade_testing.frameworks import Framework

NAMES = ("instructor", "pydantic-ai", "langchain", "llama-index", "ai-sdk")

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(400),  # the first waits for a server and the whole program
]


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name in NAMES for case in Framework(name).cases]
)
def test_framework(told, model, name, case):
    fault = told(name, model)[case]
    assert fault is None, fault


PAGE = next(page for page in pages.pages() if page.path == "docs/frameworks.md")
BLOCKS = {
    block.text: name
    for block in PAGE.blocks
    for name in NAMES
    if re.search(rf"^(import|from) {name.replace('-', '_')}|'@{name}/", block.text, re.MULTILINE)
}
"""Of that page, each with the name of the framework that it is about."""


def test_the_page_shows_every_framework():
    assert sorted(BLOCKS.values()) == sorted(NAMES)


@pytest.mark.parametrize("text", BLOCKS, ids=list(BLOCKS.values()))
def test_the_page_does_what_it_says(model, text):
    framework = Framework(BLOCKS[text])
    if framework.missing:
        pytest.skip(framework.missing)
    program = text.replace("http://127.0.0.1:8000", model).replace("MODEL", "tiny")
    done = framework.execute(program, model)
    assert done.returncode == 0, done.stderr
