"""A page as its reader follows it: blocks run in order, in one copy of the repository.

``saccade`` and ``python`` on the path are those of this environment, so is ``.venv`` for ``make``;
only ``saccade serve`` differs: it goes to the background, on a port of the session's own, and comes
back when the server is ready (``background.py``). Nothing else of a block changes but port 8000.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2

PORT = re.compile(r"(?<![\w.-])8000(?!\w)")
BACKGROUND = Path(__file__).with_name("background.py")
NAMESPACE = Path(__file__).with_name("namespace.py")
WARM = Path(__file__).with_name("warm.py")
# What a shell knows, but for bash's own constants, and where it is.
KEEP = """declare -p | grep -v "^declare -[a-zA-Z]*r"; printf "cd %q\\n" "$PWD\""""
SOURCES = ("kernels", "interventions", "server", "clients/python")


OUTER = ("SACCADE_", "MAKE", "MFLAGS")
LIBRARIES = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class BlockFailed(Exception):
    """A block does not do what it says; the text says where and how."""


class Commands:
    """The process that commands of all pages are forked from."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.socket = folder / "commands"
        self.log = folder / "commands.log"
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(WARM), str(self.socket)],
                env={**os.environ, **LIBRARIES, "PYTHONPATH": python_path(root)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def wait(self) -> Path:
        """Its socket, when it listens."""
        while not self.socket.exists():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        return self.socket

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


class Session:
    """One reader with one shell, one Python and at most one server at a time."""

    def __init__(
        self, root: Path, files: list[str], folder: Path, commands: Path, seconds: float
    ) -> None:
        """Copy ``files``; ``commands`` a socket of :class:`Commands`, ``seconds`` a block's."""
        self.seconds = seconds
        self.folder = folder / "saccade"
        self.state = folder / "state"
        self.home = folder / "home"
        for made in (self.folder, self.state, self.home):
            made.mkdir(parents=True)
        for name in files:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, self.folder / name)
        made_models = root / "build" / "models"
        if made_models.is_dir():
            (self.folder / "build").mkdir()
            (self.folder / "build/models").symlink_to(made_models.resolve())
        self.port = _free_port()
        self.python: subprocess.Popen[str] | None = None
        self.environment = self._environment(root, self._installed(folder / "venv"), commands)

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: object,
    ) -> None:
        if self.python is not None:
            self.python.kill()
            self.python.communicate()
        running = self.server()
        if running is not None:
            with suppress(ProcessLookupError):
                os.killpg(running["pid"], signal.SIGKILL)

    def run(self, block: Any) -> None:
        """Do what a block says.

        Raises:
            BlockFailed: it fails, or does something else.
        """
        text = PORT.sub(str(self.port), block.text)
        try:
            match block.kind:
                case "sh":
                    self._sh(text)
                case "console":
                    self._console(text)
                case "python":
                    self._python(text)
                case "json":
                    self._json(text)
                case "toml" | "yaml" | "jsonl":
                    self._write(block.file, text)
        except (BlockFailed, ValueError, httpx2.TransportError) as error:
            raise BlockFailed(f"{block}\n{textwrap.indent(str(error), '  ')}") from None

    def server(self) -> dict[str, Any] | None:
        """Process, arguments and log of the server that runs."""
        path = self.state / "server.json"
        return json.loads(path.read_text()) if path.exists() else None

    def shell(self, script: str) -> tuple[int, str]:
        """Run lines of bash where the last ones left off; returns the exit status and output."""
        kept = shlex.quote(str(self.state / "shell"))
        whole = (
            f"[ ! -e {kept} ] || . {kept}\n"
            f"trap '{{ {KEEP}; }} > {kept}' EXIT\n"
            f"set -eo pipefail\n{script}\n"
        )
        output = self.state / "output"
        # A file: background servers would hold a pipe open.
        with output.open("w") as out:
            process = subprocess.Popen(
                ["bash", "-c", whole],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = process.wait(self.seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                status = -1
        text = output.read_text(errors="replace").replace(str(self.port), "8000")
        return status, text if status >= 0 else f"{text}\nit took more than {self.seconds} seconds"

    def _sh(self, text: str) -> None:
        status, output = self.shell(text)
        if status != 0:
            raise BlockFailed(f"exit status {status}\n{output}")

    def _console(self, text: str) -> None:
        for command, expected in commands(text):
            status, output = self.shell(command)
            if not says(output, expected):
                raise BlockFailed(f"$ {command}\nprints (exit status {status})\n{output}")
            if status != 0 and not expected.strip(". \n"):
                raise BlockFailed(f"$ {command}\nexit status {status}\n{output}")

    def _python(self, text: str) -> None:
        """Run in the page's interpreter: what a block defines, the next ones know."""
        if self.python is None:
            self.python = subprocess.Popen(
                [sys.executable, "-P", str(NAMESPACE)],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self.python.stdin is not None
        assert self.python.stdout is not None
        self.python.stdin.write(json.dumps(text) + "\n")
        self.python.stdin.flush()
        line = self.python.stdout.readline()
        answer = json.loads(line) if line else {"error": "the interpreter ended", "output": ""}
        output = answer["output"].replace(str(self.port), "8000")
        if answer["error"]:
            raise BlockFailed(f"{output}\n{answer['error']}")
        lines = iter(output.splitlines())
        for expected in shown(text):
            if not any(says(line, expected) for line in lines):
                raise BlockFailed(f"it prints\n{output}\nand not: {expected}")

    def _json(self, text: str) -> None:
        """Send a body to where its fields belong: a chat, a continuation, or a dry run."""
        body = json.loads(text)
        if isinstance(body, list) or "method" in body:
            path = "/v1/interventions/validate"
            body = {"interventions": body if isinstance(body, list) else [body]}
        elif "continuations" in body:
            path = "/v1/score"
        elif "messages" in body:
            path = "/v1/chat/completions"
        elif "prompt" in body:
            path = "/v1/completions"
        else:
            raise BlockFailed("neither interventions nor the body of a request")
        if self.server() is None:
            self._sh("saccade serve")
        url = f"http://127.0.0.1:{self.port}"
        replies = [
            httpx2.post(f"{url}{path}", json=filled_in, timeout=self.seconds)
            for filled_in in self._named(body, url)
        ]
        if all(reply.status_code != 200 for reply in replies):
            raise BlockFailed("\n".join(f"POST {path}: {reply.text}" for reply in replies))

    def _named(self, body: Any, url: str) -> list[Any]:
        """The body with each artifact of the server for ``sha256:...``, which stands for one."""
        text = json.dumps(body)
        if "sha256:..." not in text:
            return [body]
        listed = httpx2.get(f"{url}/v1/artifacts", timeout=self.seconds).json()["data"]
        return [json.loads(text.replace("sha256:...", found["id"])) for found in listed]

    def _write(self, name: str, text: str) -> None:
        """Write a file of the page; whether it is right shows in the command that names it."""
        path = self.folder / name
        if not name or not path.resolve().is_relative_to(self.folder.resolve()):
            raise BlockFailed("no file for it: write ```toml profiles.toml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def _installed(self, venv: Path) -> Path:
        """This environment as ``make`` looks for it, up to date, and with ``saccade`` replaced."""
        (venv / "bin").mkdir(parents=True)
        real = Path(sys.executable).parent
        for program in real.iterdir():
            if program.name.startswith("python"):
                _script(venv / "bin" / program.name, shlex.quote(str(program)))
            elif program.name != "saccade":
                (venv / "bin" / program.name).symlink_to(program)
        _script(venv / "bin/saccade", shlex.join([sys.executable, str(BACKGROUND)]))
        for mark in (".saccade", ".saccade-dev"):
            (venv / mark).touch()
        return venv

    def _environment(self, root: Path, venv: Path, commands: Path) -> dict[str, str]:
        """Of this process without what is Saccade's, so that a page gets what it says itself.

        Nor with what ``make test`` hands down: targets and options of its own, which it announces.
        """
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(OUTER)}
        return inherited | {
            "HOME": str(self.home),
            "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": python_path(root),
            "VENV": str(venv),
            "PORT": str(self.port),
            "SACCADE_PORT": str(self.port),
            "SACCADE_THREADS": "1",
            **LIBRARIES,
            "COLUMNS": "100",
            "NO_COLOR": "1",
            "TERM": "dumb",
            "PAGE_STATE": str(self.state),
            "PAGE_PORT": str(self.port),
            "PAGE_SOCKET": str(commands),
        }


def python_path(root: Path) -> str:
    return os.pathsep.join(str(root / source) for source in SOURCES)


def commands(text: str) -> list[tuple[str, str]]:
    """Commands of a console, with the output below each; ``> `` and a backslash go on with one."""
    found: list[tuple[list[str], list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(([line[2:]], []))
        elif not found:
            raise BlockFailed("a console begins with `$ ` and a command")
        elif not found[-1][1] and (line.startswith("> ") or found[-1][0][-1].endswith("\\")):
            found[-1][0].append(line.removeprefix("> "))
        else:
            found[-1][1].append(line)
    return [("\n".join(command), "\n".join(output)) for command, output in found]


def says(output: str, expected: str) -> bool:
    """Whether an output is the expected one, in which ``...`` stands for any text."""

    def lines(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())

    parts = [re.escape(part) for part in lines(expected).split("...")]
    return re.fullmatch(".*".join(parts), lines(output), re.DOTALL) is not None


def shown(script: str) -> list[str]:
    """What comments below a ``print`` say that it prints, line by line."""
    found = []
    printing = False
    for line in map(str.strip, script.splitlines()):
        printing = line.startswith("print(") or (printing and line.startswith("#"))
        if printing and line.startswith("#"):
            found.append(line.removeprefix("#").strip())
    return found


def _script(path: Path, command: str) -> None:
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    path.chmod(0o755)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
