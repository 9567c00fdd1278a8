"""Every block of every page runs and says what it says, or stands in ``unrun.toml``."""

import tomllib
from collections import Counter
from pathlib import Path

import pytest

from saccade_testing.docs import commandline, pages, session
from saccade_testing.docs.brought import BROUGHT

UNRUN = tomllib.loads(Path(__file__).with_name("unrun.toml").read_text())["block"]
LISTED = {(entry["page"], entry["first"]): entry["reason"] for entry in UNRUN}
PROGRAMS = ("saccade", "make", "pip", "python", "python3", "docker", "curl", "export", "$")


def runs(block):
    return block.kind != "text" and (block.page, block.first) not in LISTED


def test_a_block_says_what_it_is(page):
    """Indented code has no kind."""
    assert [str(block) for block in page.blocks if block.kind not in pages.KINDS] == []


def test_no_command_hides_in_a_drawing(page):
    drawings = [block for block in page.blocks if block.kind == "text"]
    lines = [f"{block}: {line}" for block in drawings for line in block.text.splitlines()]
    assert [line for line in lines if line.split(": ")[-1].partition(" ")[0] in PROGRAMS] == []


def test_what_is_listed_is_there_once_and_says_why():
    there = Counter((block.page, block.first) for page in pages.pages() for block in page.blocks)
    assert {place: there[place] for place in LISTED} == dict.fromkeys(LISTED, 1)
    assert len(LISTED) == len(UNRUN)
    assert all(reason.endswith(".") for reason in LISTED.values())


def test_what_does_not_run_can_be_read(page):
    for block in page.blocks:
        if (block.page, block.first) not in LISTED:
            continue
        if block.kind == "sh":
            assert commandline.mistakes(block.text) == [], block
        if block.kind == "python":
            compile(block.text, str(block), "exec")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_page_does_what_it_says(page, commands, tmp_path: Path):
    blocks = [block for block in page.blocks if runs(block)]
    if not blocks:
        pytest.skip("it shows nothing to do")
    about_real_model = page.path in pages.REAL_MODEL
    if about_real_model and not (pages.ROOT / "build/models/smollm2").is_dir():
        pytest.skip("build/models/smollm2 is not there: make real-model makes it")
    with session.Session(
        pages.ROOT, pages.files(), tmp_path, commands, 3000 if about_real_model else 400
    ) as reader:
        if page.path in BROUGHT:
            BROUGHT[page.path](reader.folder)
        for block in blocks:
            reader.run(block)
