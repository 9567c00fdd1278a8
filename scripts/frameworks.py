"""Install agents' frameworks, each in an environment of its own, for the tests that run them.

    python scripts/frameworks.py [--if-available]

They pin versions of each other's packages, so ``build/frameworks/NAME`` is an environment for one
framework alone, with the exact versions of tests/clients/frameworks/environments/NAME.txt; the AI
SDK is a folder that npm fills from its lock file. Nothing is done again that is done already. With
``--if-available`` it is no failure that a package, or Node.js, cannot be had; the tests skip then,
and say why.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WANTED = ROOT / "tests" / "clients" / "frameworks" / "environments"
BUILD = ROOT / "build" / "frameworks"
NOTE = "made_from.txt"
"""In each environment made here: what it was made from."""
OLDEST_NODE = 18


class NotAvailableError(Exception):
    """A package, or a program, cannot be had here; the message is a sentence."""


def python(requirements: Path) -> None:
    """An environment with the packages of a file."""
    folder = BUILD / requirements.stem
    wanted = requirements.read_text()
    if is_made_from(folder, wanted):
        return
    say(f"installing {requirements.stem}")
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, symlinks=True)
    interpreter = str(folder / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", interpreter, "--quiet", "install"]
    pip += ["--no-deps", "--no-compile", "--disable-pip-version-check", "--retries", "1"]
    run(requirements.stem, *pip, "--requirement", str(requirements))
    (folder / NOTE).write_text(wanted)


def node(package: Path) -> None:
    """A folder with the packages of a lock file."""
    folder = BUILD / package.name
    lock = (package / "package-lock.json").read_text()
    if is_made_from(folder, lock):
        return
    if not (shutil.which("node") and shutil.which("npm")):
        raise NotAvailableError(f"{package.name}: there is no Node.js here (node and npm)")
    said = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip()
    if int(said.removeprefix("v").partition(".")[0] or 0) < OLDEST_NODE:
        raise NotAvailableError(f"{package.name}: needs Node.js {OLDEST_NODE}, this is {said}")
    say(f"installing {package.name}")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(package, folder)
    quiet = ("--no-fund", "--no-audit", "--no-update-notifier", "--fetch-retries", "1")
    run(package.name, "npm", "ci", "--ignore-scripts", "--prefix", str(folder), *quiet)
    (folder / NOTE).write_text(lock)


def is_made_from(folder: Path, wanted: str) -> bool:
    note = folder / NOTE
    return note.is_file() and note.read_text() == wanted


def run(name: str, *command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        reason = said[-1].strip() if said else f"{command[0]} ended with {done.returncode}"
        raise NotAvailableError(f"{name} cannot be had: {reason}")


def say(line: str) -> None:
    print(f"frameworks: {line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--if-available", action="store_true")
    options = parser.parse_args()
    missing = 0
    for wanted in sorted(WANTED.iterdir()):
        try:
            node(wanted) if wanted.is_dir() else python(wanted)
        except NotAvailableError as error:
            missing += 1
            say(str(error))
    say(f"{missing} missing" if missing else f"all in {os.path.relpath(BUILD)}")
    sys.exit(1 if missing and not options.if_available else 0)


if __name__ == "__main__":
    main()
