"""What every benchmark writes: where and with what it ran, its figures, its targets."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("saccade", "torch", "transformers", "fastapi", "uvicorn", "numpy")


@dataclass(frozen=True)
class Target:
    """One figure an issue asks for. ``at_most``: smaller is better."""

    name: str
    value: float
    unit: str
    target: float
    at_most: bool

    @property
    def met(self) -> bool:
        return self.value <= self.target if self.at_most else self.value >= self.target

    def as_json(self) -> dict[str, Any]:
        fields = asdict(self)
        bound = "<=" if fields.pop("at_most") else ">="
        return {**fields, "target": f"{bound} {self.target:g}", "met": self.met}


def hardware() -> str:
    """A name of this machine's kind, fit for a file name."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        name = f"cpu-{os.cpu_count()}core"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def write(name: str, figures: Mapping[str, Any], targets: Sequence[Target]) -> Path:
    """Write ``results/<name>-<hardware>.json`` and print it as the last line of stdout."""
    kind = hardware()
    document = {
        "name": name,
        "hardware": {"kind": kind, "processor": _processor(), "cores": os.cpu_count()},
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
        "commit": _commit(),
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "targets": [target.as_json() for target in targets],
        **figures,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{kind}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))
    return path


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found.group(1) if found else platform.processor()


def _commit() -> str:
    """The checked-out commit, with a plus if the tree differs from it."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return run.stdout.strip()

    dirty = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--short", "HEAD") + ("+" if dirty else "")
