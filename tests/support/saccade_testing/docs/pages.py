"""Every Markdown page of the repository, taken apart: blocks, code in the running text, links."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[4]
MARKDOWN = MarkdownIt("commonmark").enable("table")
KINDS = ("sh", "console", "python", "json", "jsonl", "toml", "yaml", "text")
"""What a block's info string may begin with; a file's name may follow."""
REAL_MODEL = {"docs/text-models.md"}
"""Pages about the checkpoint of ``make real-model``."""


@dataclass(frozen=True)
class Block:
    """A block of code: the first line of its text tells it from the others of its page."""

    page: str
    line: int
    kind: str
    file: str
    text: str

    @property
    def first(self) -> str:
        return self.text.partition("\n")[0]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.first}"


@dataclass(frozen=True)
class Piece:
    """Something of the running text, with the line its paragraph begins at."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Page:
    """A page by its path from the root."""

    path: str

    @cached_property
    def tokens(self) -> list[Token]:
        return MARKDOWN.parse((ROOT / self.path).read_text(encoding="utf-8"))

    @cached_property
    def blocks(self) -> list[Block]:
        """Blocks in order; one that is indented instead of fenced has no kind."""
        found = []
        for token in self.tokens:
            if token.type in ("fence", "code_block"):
                assert token.map is not None
                kind, _, file = token.info.strip().partition(" ")
                found.append(Block(self.path, token.map[0] + 1, kind, file.strip(), token.content))
        return found

    @cached_property
    def code(self) -> list[Piece]:
        """What stands between backticks."""
        return [
            Piece(self.path, line, " ".join(token.content.split()))
            for line, token in self._inline()
            if token.type == "code_inline"
        ]

    @cached_property
    def links(self) -> list[Piece]:
        """Targets of links and images."""
        found = []
        for line, token in self._inline():
            target = token.attrGet("href" if token.type == "link_open" else "src")
            if target is not None:
                found.append(Piece(self.path, line, str(target)))
        return found

    @cached_property
    def anchors(self) -> set[str]:
        """The names that GitHub gives to the headings."""
        names: set[str] = set()
        for token, content in zip(self.tokens, self.tokens[1:], strict=False):
            if token.type == "heading_open":
                words = "".join(child.content for child in content.children or ())
                name = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
                again = sum(
                    1 for other in names if re.fullmatch(rf"{re.escape(name)}(-\d+)?", other)
                )
                names.add(f"{name}-{again}" if again else name)
        return names

    def _inline(self) -> Iterator[tuple[int, Token]]:
        line = 1
        for token in self.tokens:
            line = token.map[0] + 1 if token.map else line
            for child in token.children or ():
                yield line, child


def files() -> list[str]:
    """Every file of the repository, and those that will be in it when they are committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = sorted(set(listed.stdout.split("\0")) - {""})
    return [name for name in names if (ROOT / name).is_file()]


def pages() -> list[Page]:
    return [Page(name) for name in files() if name.endswith(".md")]
