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
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PACKAGES = ("torch", "triton", "transformers", "fastapi", "uvicorn", "numpy")


@dataclass(frozen=True)
class Target:
    """One figure an issue asks for. ``at_most``: smaller is better. No value: not measured."""

    name: str
    value: float | None
    unit: str
    target: float
    at_most: bool
    stretch: float | None = None  # what would be better still

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        return self.value <= self.target if self.at_most else self.value >= self.target

    def as_json(self) -> dict[str, Any]:
        fields = asdict(self)
        bound = "<=" if fields.pop("at_most") else ">="
        if fields.pop("stretch") is not None:
            fields["stretch"] = f"{bound} {self.stretch:g}"
        return {**fields, "target": f"{bound} {self.target:g}", "met": self.met}


def hardware() -> str:
    """A name of this machine's kind, fit for a file name."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        name = f"cpu-{os.cpu_count()}core"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def folder() -> Path:
    """Where results go: the folder in the environment variable OUT, or results/."""
    return Path(os.environ.get("OUT") or RESULTS)


def write(
    name: str, figures: Mapping[str, Any], targets: Sequence[Target], show: bool = True
) -> Path:
    """Write ``<name>-<hardware>.json`` and print it as the last line of stdout."""
    machine = about()
    document = {
        "name": name,
        "hardware": machine,
        "versions": versions(),
        "commit": commit(),
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "targets": [target.as_json() for target in targets],
        **figures,
    }
    path = save(folder() / f"{name}-{machine['kind']}.json", document)
    if show:
        print(json.dumps(document), flush=True)
    return path


def save(path: Path, document: Mapping[str, Any]) -> Path:
    """Write a document, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(fresh, path)
    return path


def read(path: Path) -> dict[str, Any]:
    """A document; empty if there is none that can be read."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def about() -> dict[str, Any]:
    """This machine."""
    return {"kind": hardware(), "processor": _processor(), "cores": os.cpu_count(), **_gpu()}


def _gpu() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {}
    known = torch.cuda.get_device_properties(0)
    return {
        "gpu": known.name,
        "gpu_memory_gib": round(known.total_memory / 2**30, 1),
        "multiprocessors": known.multi_processor_count,
        "capability": 10 * known.major + known.minor,
    }


def versions() -> dict[str, str]:
    """Of the code that runs, which may be no installed distribution, and of what is installed."""
    from saccade_server import __version__

    found = {"python": platform.python_version(), "saccade": __version__}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found.group(1) if found else platform.processor()


def commit() -> str:
    """The checked-out commit, with a plus if the tree differs from it.

    The environment variable COMMIT names it where the tree was copied without its history.
    """
    if "COMMIT" in os.environ:
        return os.environ["COMMIT"]

    def git(*arguments: str) -> str:
        try:
            run = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        except OSError:
            return ""
        return run.stdout.strip()

    dirty = git("status", "--porcelain", "--untracked-files=no")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if dirty else "")
