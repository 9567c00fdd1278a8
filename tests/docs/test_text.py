"""What the running text names is there: files, commands, options, targets, addresses, headings."""

import fnmatch
import importlib
import posixpath
import re

import pytest
from fastapi import FastAPI

from saccade_testing.docs import commandline, pages

FILE = re.compile(r"[\w.*<>-]*[\w>*](/[\w.*<>-]+)*/?")
ENDINGS = (
    *(".py", ".md", ".sh", ".toml", ".yaml", ".json", ".jsonl"),
    *(".safetensors", ".bin", ".png", ".svg", ".txt"),
)


ADDRESS = re.compile(r"(?:(?:GET|POST|PUT|DELETE) )?(/[a-z][\w/.{}-]*)")
FOREIGN = {"pytorch_model.bin", "--profile", "--volume"}
"""Files and options of others' programs."""
NOT_YET = {"/metrics"}
"""Addresses that pages say are missing."""


@pytest.fixture(scope="module")
def names():
    """Files and folders of the repository, each with a slash before it."""
    files = [f"/{name}" for name in pages.files()]
    folders = {name[: end.start()] for name in files for end in re.finditer("/", name)} - {""}
    return [*files, *sorted(folders)]


@pytest.fixture(scope="module")
def sources():
    python = [name for name in pages.files() if re.fullmatch(r"(?!tests/).*\.py", name)]
    return "\n".join((pages.ROOT / name).read_text() for name in python)


@pytest.fixture(scope="module")
def addresses():
    """What the server answers, as patterns."""
    api = "\n".join(
        path.read_text() for path in (pages.ROOT / "server/saccade_server/api").rglob("*.py")
    )
    routes = {FastAPI().openapi_url, *re.findall(r'"(/[a-z][\w/.{}-]*)"', api)}
    return [re.sub(r"\\{\w+\\}", "[^/]+", re.escape(route)) for route in sorted(routes)]


def words(page):
    """The words of code in the text, each with where it stands."""
    return [(piece, word) for piece in page.code for word in piece.text.split()]


def is_file(word):
    named = word.endswith(ENDINGS) or ("/" in word and not word.startswith("/"))
    return named and FILE.fullmatch(word) is not None


def test_files_are_there(page, names, sources):
    """In the repository; or made by a command, or a model's: the code knows the names of these."""
    shown = "\n".join(block.text for block in page.blocks)
    missing = []
    for piece, word in words(page):
        name = word.removeprefix("./").rstrip("/")
        if not is_file(name) or name in FOREIGN:
            continue
        pattern = "*/" + re.sub(r"<\w+>", "*", name)
        there = any(fnmatch.fnmatchcase(path, pattern) for path in names)
        known = not name.endswith(".py") and (f'"{name}"' in sources or name in shown)
        if not there and not known:
            missing.append(str(piece))
    assert missing == []


def test_links_lead_somewhere(page):
    broken = []
    for link in page.links:
        if re.match(r"[a-z]+:", link.text):
            continue
        target, _, anchor = link.text.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.path), target))
        path = path if target else page.path
        there = (pages.ROOT / path).exists() and not path.startswith("..")
        if not there or (anchor and anchor not in pages.Page(path).anchors):
            broken.append(str(link))
    assert broken == []


def test_commands_can_be_given(page):
    """Commands with their options, and options alone."""
    wrong = []
    known = commandline.options() | FOREIGN
    for piece in page.code:
        first, *rest = piece.text.split()
        found = commandline.wrong_in([first, *rest])
        if first.startswith("--"):
            found = [word for word in (first, *rest) if word.startswith("--")]
            found = [word for word in found if word.partition("=")[0] not in known]
        wrong += [f"{piece}: {fault}" for fault in found]
    assert wrong == []


def test_variables_are_read(page):
    text = "\n".join([*(piece.text for piece in page.code), *(b.text for b in page.blocks)])
    assert set(re.findall(r"\bSACCADE_[A-Z_]*[A-Z]\b", text)) - commandline.variables() == set()


def test_addresses_are_answered(page, addresses):
    """By the server; or they are folders of the container."""
    container = (pages.ROOT / "Dockerfile").read_text() + (pages.ROOT / "compose.yaml").read_text()
    unknown = []
    for piece in page.code:
        address = ADDRESS.fullmatch(piece.text)
        if address is None or address[1] in NOT_YET:
            continue
        folder = re.search(rf"[\s:=\[]{re.escape(address[1])}[\s:/\]]", container)
        if not folder and not any(re.fullmatch(pattern, address[1]) for pattern in addresses):
            unknown.append(str(piece))
    assert unknown == []


def test_python_names_are_there(page):
    """Names with dots that begin with one of our packages."""
    for piece in page.code:
        package, *rest = piece.text.partition("(")[0].split(".")
        if not re.fullmatch(r"saccade_\w+", package) or not all(map(str.isidentifier, rest)):
            continue
        found = importlib.import_module(package)
        for name in rest:
            if not hasattr(found, name):
                importlib.import_module(f"{found.__name__}.{name}")
            found = getattr(found, name)
