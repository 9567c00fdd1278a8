"""make frameworks without a network or Node.js: what it says, and what it leaves alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / "tests" / "clients" / "frameworks" / "environments"
NOWHERE = {
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_FIND_LINKS": "",
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_NO_CACHE_DIR": "1",
}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A copy whose build folder is a temporary one, with one environment of each kind."""
    copy = tmp_path / "scripts" / "frameworks.py"
    copy.parent.mkdir()
    shutil.copy(ROOT / "scripts" / "frameworks.py", copy)
    wanted = tmp_path / ENVIRONMENTS.relative_to(ROOT)
    shutil.copytree(ENVIRONMENTS / "ai-sdk", wanted / "ai-sdk")
    shutil.copy(ENVIRONMENTS / "instructor.txt", wanted)
    return copy


@pytest.mark.parametrize(("options", "status"), [([], 1), (["--if-available"], 0)])
def test_what_cannot_be_had_is_said(script: Path, options: list[str], status: int) -> None:
    programs = script.parent / "bin"
    programs.mkdir()  # no node in it
    done = subprocess.run(
        [sys.executable, str(script), *options],
        env=os.environ | NOWHERE | {"PATH": str(programs)},
        capture_output=True,
        text=True,
    )
    node, begun, pip, last = done.stdout.splitlines()
    assert node == "frameworks: ai-sdk: there is no Node.js here (node and npm)"
    assert begun == "frameworks: installing instructor"
    assert pip.startswith("frameworks: instructor cannot be had: ")
    assert last == "frameworks: 2 missing"
    assert (done.returncode, done.stderr) == (status, "")
    assert not list(script.parents[1].glob("build/frameworks/*/made_from.txt"))


def test_what_is_there_is_left_alone(script: Path) -> None:
    wanted = script.parents[1] / ENVIRONMENTS.relative_to(ROOT)
    for name, source in [("instructor", "instructor.txt"), ("ai-sdk", "ai-sdk/package-lock.json")]:
        folder = script.parents[1] / "build" / "frameworks" / name
        folder.mkdir(parents=True)
        shutil.copy(wanted / source, folder / "made_from.txt")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("frameworks: all in ")


def test_every_version_is_exact_and_no_registry_is_named() -> None:
    for path in ENVIRONMENTS.glob("*.txt"):
        assert all(line.count("==") == 1 for line in path.read_text().splitlines()), path
    package = json.loads((ENVIRONMENTS / "ai-sdk" / "package.json").read_text())
    assert all(version[0].isdigit() for version in package["dependencies"].values())
    lock = json.loads((ENVIRONMENTS / "ai-sdk" / "package-lock.json").read_text())
    assert all("resolved" not in entry for entry in lock["packages"].values())
