"""The tests that need a GPU, by this machine's own pytest."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from pathlib import Path

from gpu.digests import ROOT
from gpu.session import FAULT, Figures, Session
from gpu.targets import PASSED

TIMED_OUT = 20
"""Seconds of a part that are left when its tests are ended."""
WORKERS = 4


def run_tests(session: Session, found: Figures) -> None:
    """Every test marked gpu, each with how it ended; what is missing is said instead."""
    missing = [name for name in ("pytest", "pytest_timeout") if not _has(name)]
    if missing:
        found["skipped"] = f"there is no {' and no '.join(missing)} here"
        session.line("tests marked gpu", f"skipped: {found['skipped']}")
        return
    files = marked(ROOT / "tests")
    report = Path(tempfile.mkdtemp()) / "report.xml"
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
    options += ["-W", "default", "-n", str(WORKERS)] if _has("xdist") else ["-W", "default"]
    command = [sys.executable, "-m", "pytest", *options, *map(str, files)]
    code, said = _run(command, max(5.0, session.left - TIMED_OUT))
    ended = outcomes(report)
    found["outcomes"] = ended
    if code not in (0, 1) or not ended:
        found["run"] = {FAULT: f"pytest ended with {code}", "said": said[-1500:]}
    ran = [how for how in ended.values() if how != "skipped"]
    passed = sum(how == "passed" for how in ran)
    session.line("tests marked gpu", f"{passed} of {len(ran)} pass, {len(ended)} there are")
    for name, how in ended.items():
        if how not in ("passed", "skipped"):
            session.say(f"{name}: {how}"[:300])
    if ran:
        session.reach(PASSED, passed / len(ran))


def marked(folder: Path) -> list[Path]:
    """Files with such tests: the others may need packages that are not here."""
    return sorted(p for p in folder.rglob("test_*.py") if "mark.gpu" in p.read_text())


def outcomes(report: Path) -> dict[str, str]:
    """By test: passed, skipped, or the first line of why it failed."""
    if not report.exists():
        return {}
    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        how = "passed"
        for child in case:
            if child.tag == "skipped":
                how = "skipped"
            elif child.tag in ("failure", "error"):
                how = f"{child.tag}: {(child.get('message') or '').splitlines()[:1]}"[:400]
        found[f"{case.get('classname', '')}.{case.get('name', '')}"] = how
    return found


def _run(command: list[str], seconds: float) -> tuple[int | None, str]:
    """The exit code, None if time ran out, and what was said."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        return code, log.read()


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
