"""What may stand in a command: options of ``saccade``, targets of ``make``, as these say."""

import re
import shlex
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import typer

from saccade_server.cli import app

ROOT = Path(__file__).parents[4]


def mistakes(script: str) -> list[str]:
    """What is wrong with a script as far as reading tells: syntax, options, targets, files."""
    checked = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True)
    if checked.returncode != 0:
        return [checked.stderr]
    return [wrong for words in commands(script) for wrong in wrong_in(words)]


def wrong_in(words: list[str]) -> list[str]:
    """What is wrong with one command's words."""
    match words:
        case ["saccade", *arguments]:
            return wrong_options(arguments)
        case ["make", *arguments]:
            named = [word for word in arguments if re.fullmatch(r"[a-z][\w-]*", word)]
            return [f"no target of make: {name}" for name in named if name not in targets()]
        case ["python" | "python3", "-m", module, *_] if module.startswith("saccade"):
            found = list(ROOT.glob(f"*/{module.replace('.', '/')}.py"))
            return [] if found else [f"no module {module}"]
        case ["python" | "python3", script, *_] if script.endswith(".py"):
            return [] if (ROOT / script).is_file() else [f"no file {script}"]
    return []


def commands(script: str) -> list[list[str]]:
    """The simple commands of a script, as words without what they set in the environment."""
    found: list[list[str]] = []
    line = ""
    for part in script.replace("\\\n", " ").splitlines():
        line += part
        try:
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = list(lexer)
        except ValueError:  # a quotation goes on in the next line
            line += "\n"
            continue
        line = ""
        found.append([])
        for word in words:
            if set(word) <= set(";&|()<>"):
                found.append([])
            elif found[-1] or not re.fullmatch(r"\w+=.*", word):
                found[-1].append(word)
    return [words for words in found if words]


def wrong_options(arguments: list[str]) -> list[str]:
    """Commands that ``saccade`` does not have, and options that the command does not."""
    command: Any = _saccade()
    name = "saccade"
    rest = list(arguments)
    while rest and hasattr(command, "commands") and not rest[0].startswith("-"):
        if rest[0].isupper():  # stands for any
            return []
        if rest[0] not in command.commands:
            return [f"{name} has no command {rest[0]}"]
        name = f"{name} {rest[0]}"
        command = command.commands[rest.pop(0)]
    known = {"--help"}.union(*({*p.opts, *p.secondary_opts} for p in command.params))
    given = [word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)]
    return [f"{name} has no option {option}" for option in given if option not in known]


@cache
def options() -> frozenset[str]:
    """Every option of every command and of the repository's scripts."""
    found = {"--help"}
    for command in _all(_saccade()):
        found.update(*(param.opts + param.secondary_opts for param in command.params))
    for folder in ("benchmarks", "scripts", "server"):
        for path in (ROOT / folder).rglob("*.py"):
            found.update(re.findall(r'"(--[a-z][\w-]*)"', path.read_text()))
    return frozenset(found)


@cache
def variables() -> frozenset[str]:
    """Every environment variable that a command or a source names."""
    found = set()
    for folder in ("server", "clients", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            found.update(re.findall(r"\bSACCADE_[A-Z_]+\b", path.read_text()))
    return frozenset(found)


@cache
def targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def _saccade() -> Any:
    return typer.main.get_command(app)


def _all(command: Any) -> list[Any]:
    below = getattr(command, "commands", {}).values()
    return [command, *(one for each in below for one in _all(each))]
