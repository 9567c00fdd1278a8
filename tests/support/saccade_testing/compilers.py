"""The two tritons that kernels are compiled with, each in a process of its own.

Compilers cannot run where the interpreter does. The older one is in build/, where `make test` puts
it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def _version(file: str) -> str:
    found = re.search(r"^triton==(\S+)$", (ROOT / file).read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


PINNED, OLDER = _version("constraints.txt"), _version("constraints.older.txt")
COMPILERS = pytest.mark.parametrize("compiler", [PINNED, OLDER])


def run(compiler: str, script: str, *arguments: str, **environment: str) -> str:
    """What a script of benchmarks/ prints with one of the compilers."""
    folder = ROOT / f"build/triton-{compiler}"
    if compiler != PINNED and not (folder / "triton").is_dir():
        pytest.skip(f"triton {compiler} is not in build/; `make test` puts it there")
    path = ([str(folder)] if compiler != PINNED else []) + sys.path
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    variables |= {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
