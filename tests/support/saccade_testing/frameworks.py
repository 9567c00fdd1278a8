"""Programs that use a framework, each run once a model in the framework's own environment."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAMS = ROOT / "tests" / "clients" / "frameworks" / "programs"
BUILD = ROOT / "build" / "frameworks"
SECONDS = 240.0


@dataclass(frozen=True)
class Framework:
    """One of them, and the program that uses it."""

    name: str

    @property
    def program(self) -> Path:
        (found,) = PROGRAMS.glob(f"with_{self.name.replace('-', '_')}.*")
        return found

    @property
    def cases(self) -> list[str]:
        """The names of the program's cases, without running it."""
        text = self.program.read_text()
        if self.program.suffix == ".py":
            return re.findall(r"^(?:async )?def ([a-z]\w*)\(", text, re.MULTILINE)
        listed = text.partition("\nconst cases = {\n")[2].partition("\n};\n")[0]
        return re.findall(r"^  (?:async )?([a-z]\w*)(?:\(\) \{|:)", listed, re.MULTILINE)

    @property
    def missing(self) -> str | None:
        """Why it cannot run here."""
        if self.name == "openai" or (BUILD / self.name / "made_from.txt").is_file():
            return None
        return f"no {BUILD.relative_to(ROOT) / self.name}: make frameworks"

    def run(self, url: str) -> dict[str, str | None]:
        """What went wrong, by case; None for a case that ended well.

        Raises:
            AssertionError: the program ended before its last case.
        """
        done = self.execute(self.program, url)
        lines = [line for line in done.stdout.splitlines() if line.startswith('{"case"')]
        told = {line["case"]: line["fault"] for line in map(json.loads, lines)}
        assert done.returncode == 0, done.stdout + done.stderr
        assert list(told) == self.cases, done.stdout + done.stderr
        return told

    def execute(self, program: Path | str, url: str) -> subprocess.CompletedProcess[str]:
        """Run a program, a file or its text, in the framework's own environment."""
        environment = {**os.environ, "SACCADE_URL": url, "PYTHONPATH": str(PROGRAMS)}
        environment.pop("PYTHONWARNINGS", None)
        own = BUILD / self.name
        if self.program.suffix == ".mjs":
            command = ["node", "--input-type=module", "-"]
            program = program.read_text() if isinstance(program, Path) else program
        elif self.name == "openai":
            command = [sys.executable]
        else:
            command = [str(own / "bin" / "python")]
        piped = isinstance(program, str)
        return subprocess.run(
            command if piped else [*command, str(program)],
            input=str(program) if piped else "",
            # Where Node.js looks for the modules of a program that it reads from a pipe.
            cwd=own if own.is_dir() else PROGRAMS,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
