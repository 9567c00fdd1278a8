"""Pages that do not do what they say are found out."""

from pathlib import Path

import pytest

from saccade_testing.docs import commandline, pages, session

RECIPE = [
    "Makefile",
    "clients/python/pyproject.toml",
    "constraints.older.txt",
    "constraints.txt",
    "pyproject.toml",
]
"""What ``make`` looks at before it runs ``saccade``."""


@pytest.fixture
def reader(commands, tmp_path: Path):
    with session.Session(pages.ROOT, RECIPE, tmp_path, commands, 100) as reader:
        yield reader


@pytest.fixture
def block():
    """A block of a page of its own: ``block(kind, text, file)``."""
    return lambda kind, text, file="": pages.Block("page.md", 1, kind, file, text)


RIGHT = [
    ("sh", "saccade methods var > described.json\ngrep -q move_fraction described.json"),
    ("sh", "saccade serve --help"),
    ("console", "$ echo one; echo two >&2\none\ntwo\n$ echo a \\\n  b\na b"),
    ("console", "$ seq 9\n1\n...\n9"),
    ("console", "$ saccade methods nothing\n...nothing..."),
    ("python", "print('one')\nprint('two')\n# two\nprint('three')  # not checked"),
    ("python", "for number in (1, 2):\n    print(number)\n    # 1\n    # 2"),
]
WRONG = [
    ("sh", "saccade methods --no-such-option", "--no-such-option"),
    ("sh", "false\ntrue", "exit status 1"),
    ("sh", "cat no-such-file | sort", "no such file"),
    ("console", "$ seq 3\n1\n3", "prints (exit status 0)"),
    ("console", "$ echo one\ntwo", "prints (exit status 0)"),
    ("console", "$ false", "exit status 1"),
    ("console", "a line without a command", "begins with"),
    ("python", "print('one')\n# two", "and not: two"),
    ("python", "import no_such_module", "ModuleNotFoundError"),
    ("json", '{"no": "request"}', "neither"),
    ("json", "{", "Expecting"),
    ("toml", "[profiles]", "no file"),
]


@pytest.mark.parametrize(("kind", "text"), RIGHT)
def test_what_is_right_passes(kind, text, reader, block):
    reader.run(block(kind, text))


@pytest.mark.parametrize(("kind", "text", "why"), WRONG)
def test_what_is_wrong_is_named(kind, text, why, reader, block):
    with pytest.raises(session.BlockFailed, match=r"^page\.md:1: ") as caught:
        reader.run(block(kind, text))
    assert why.lower() in str(caught.value).lower()


def test_blocks_go_on_where_the_last_one_ended(reader, block):
    reader.run(block("toml", "[profiles]\n", "made/profiles.toml"))
    reader.run(block("sh", "name=made\nexport OTHER=$name\ncd made"))
    reader.run(block("console", '$ cat "../$name/profiles.toml"; echo "$OTHER"\n[profiles]\nmade'))
    reader.run(block("python", "answer = 42"))
    reader.run(block("python", "print(answer)\n# 42"))


def test_make_installs_nothing(reader, block):
    reader.run(block("console", "$ make help | sed -n 1p\nmake ..."))
    reader.run(block("console", "$ make --dry-run demo ARGS=--json | wc -l\n1"))


@pytest.mark.parametrize(
    ("script", "wrong"),
    [
        ("saccade serve --prot 8000", "saccade serve has no option --prot"),
        ("A=1 saccade calibrate vector x.jsonl", "saccade calibrate has no command vector"),
        ("true && make serv", "no target of make: serv"),
        ("python benchmarks/nothing.py --parts x", "no file benchmarks/nothing.py"),
        ("python -m saccade_server.nothing", "no module saccade_server.nothing"),
    ],
)
def test_what_is_only_read_is_read_well(script, wrong):
    assert commandline.mistakes(script) == [wrong]


def test_a_page_is_taken_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(
        "# A `title`, twice\n\n## A title, twice\n\nSee [it](other.md#here) and `make  it`.\n\n"
        "```toml a.toml\nb = 1\n```\n\n    indented\n"
    )
    page = pages.Page("page.md")
    assert [(block.kind, block.file, block.line) for block in page.blocks] == [
        ("toml", "a.toml", 7),
        ("", "", 11),
    ]
    assert [piece.text for piece in page.code] == ["title", "make it"]
    assert [piece.text for piece in page.links] == ["other.md#here"]
    assert page.anchors == {"a-title-twice", "a-title-twice-1"}
