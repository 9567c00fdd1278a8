"""What this machine is, and what it lacks: its card, and packages that travel as wheels."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from gpu.digests import BENCHMARKS, ROOT

SOURCES = ("kernels", "interventions", "server", "clients/python")
PROBE_SECONDS = 120

PROBE = """
import json, report, torch
gpu = torch.cuda.is_available()
print(json.dumps({"gpu": gpu, "hardware": report.about(), "versions": report.versions()}))
"""


class NoGpuError(Exception):
    """Nothing can be measured here; the message is a sentence."""


def unpack(wheels: Path) -> Path | None:
    """The wheels' packages in one folder, without pip; None if there are no wheels."""
    found = sorted(wheel for wheel in wheels.glob("*.whl") if _fits(wheel.name))
    if not found:
        return None
    names = hashlib.sha256("\n".join(f"{w.name} {w.stat().st_size}" for w in found).encode())
    site = Path(tempfile.gettempdir()) / f"saccade-site-{names.hexdigest()[:12]}"
    if not site.is_dir():
        fresh = Path(tempfile.mkdtemp(dir=site.parent))
        for wheel in found:
            with ZipFile(wheel) as archive:
                archive.extractall(fresh)
        fresh.rename(site)
    return site


def _fits(wheel: str) -> bool:
    """Whether this Python can use it: others may lie beside it, fetched for another machine."""
    python, abi, _ = wheel.removesuffix(".whl").split("-")[-3:]
    own = sys.version_info[:2]
    tags = {
        tuple(map(int, re.findall(r"^cp(\d)(\d+)$", tag)[0]))
        for tag in python.split(".")
        if tag.startswith("cp")
    }
    return not tags or own in tags or (abi == "abi3" and min(tags) <= own)


def environment(site: Path | None) -> dict[str, str]:
    """Of processes that measure: this tree's sources first, then what travels."""
    places = [str(ROOT / source) for source in SOURCES]
    places += [str(site)] if site else []
    places += [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(dict.fromkeys(places))}


def probe(variables: dict[str, str], dry: bool) -> dict[str, Any]:
    """The card and the versions of what is here.

    Raises:
        NoGpuError: there is no card, or no torch to ask.
    """
    found = _ask([sys.executable, "-c", PROBE], variables)
    if not (found["gpu"] or dry):
        raise NoGpuError(
            "There is no GPU here that torch can use; --dry-run runs every part on tiny shapes "
            "on the CPU."
        )
    return found


def _ask(command: Sequence[str], variables: dict[str, str]) -> dict[str, Any]:
    path = os.pathsep.join((str(BENCHMARKS), variables["PYTHONPATH"]))
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            env={**variables, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired as error:
        raise NoGpuError(f"torch did not load within {PROBE_SECONDS} s.") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise NoGpuError(f"What measures does not load ({last}): see benchmarks/README.md.")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
