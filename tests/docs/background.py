"""``saccade`` for a page under test: a server goes to the background; all else runs as it is.

A server that still runs is what its reader stops with Ctrl-C before the next one; if that has the
same options and environment, it goes on instead.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

MAIN = "import sys; sys.argv[0] = 'saccade'; from saccade_server.cli import main; main()"
COMMAND = [sys.executable, "-P", "-c", MAIN]
STATE = Path(os.environ["PAGE_STATE"])
RUNNING = STATE / "server.json"
SECONDS = 180


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[:1] != ["serve"] or "--help" in arguments:
        os.execv(COMMAND[0], [*COMMAND, *arguments])
    settings = {k: v for k, v in sorted(os.environ.items()) if k.startswith("SACCADE_")}
    wanted = {"arguments": arguments, "settings": settings, "folder": os.getcwd()}
    if RUNNING.exists():
        running = json.loads(RUNNING.read_text())
        if {name: running[name] for name in wanted} == wanted:
            print(Path(running["log"]).read_text(), end="")
            return 0
        stop(running["pid"])
    return start(wanted)


def start(wanted: dict) -> int:
    """Start a server; returns 0 when it is ready, or what it ended with."""
    log = STATE / f"server-{time.time_ns()}.log"
    # Tests listen on the loopback alone.
    arguments = ["127.0.0.1" if word == "0.0.0.0" else word for word in wanted["arguments"]]
    with log.open("w") as out:
        server = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    RUNNING.write_text(json.dumps({**wanted, "pid": server.pid, "log": str(log)}))
    end = time.monotonic() + SECONDS
    while server.poll() is None and not ready() and time.monotonic() < end:
        time.sleep(0.05)
    print(log.read_text(), end="", flush=True)
    if server.poll() is None and ready():
        return 0
    RUNNING.unlink()
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        print(f"not ready after {SECONDS} s")
        return 1
    return server.returncode


def ready() -> bool:
    url = f"http://127.0.0.1:{os.environ['PAGE_PORT']}/ready"
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def stop(pid: int) -> None:
    """End a server of another process and wait until its port is free."""
    if alive(pid):
        os.kill(pid, signal.SIGTERM)
    while alive(pid):
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """False of a process that has ended, reaped or not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


if __name__ == "__main__":
    sys.exit(main())
