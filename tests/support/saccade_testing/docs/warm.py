"""``saccade`` without its seven seconds of imports: a process that has them forks for each command.

    python warm.py SOCKET

A client sends arguments, environment and folder as JSON, with its three standard streams, and gets
two lines back: the process, and its exit status when it has ended. A command in the foreground ends
when its client does.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from typing import Any

COMMANDS = (
    "saccade_server.calibration.terminal",
    "saccade_server.demonstration",
    "saccade_server.evaluation.terminal",
    "saccade_server.oneshot",
    "saccade_server.selftest",
    "saccade_server.serving",
    "transformers.models.llava.modeling_llava",
    "transformers.models.llava.processing_llava",
)
LIMIT = 1 << 20
"""Bytes of a message, at most."""


def main(path: str) -> None:
    for module in COMMANDS:
        importlib.import_module(module)
    gc.freeze()  # what is collected in a fork is copied first
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            client, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                keep(client)
                return
            client.close()


def keep(client: socket.socket) -> None:
    """Run what a client asks for in a process of its own, and tell it how that ended."""
    text, streams, _, _ = socket.recv_fds(client, LIMIT, 3)
    asked = json.loads(text)
    process = os.fork()
    if process == 0:
        client.close()
        run(asked, streams)
    for stream in streams:
        os.close(stream)
    client.sendall(f"{process}\n".encode())
    ended = os.pidfd_open(process)
    watched: list[int | socket.socket] = [ended, client] if asked["foreground"] else [ended]
    if ended not in select.select(watched, [], [])[0]:
        os.killpg(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with contextlib.suppress(OSError):  # it may have gone
        client.sendall(f"{status if status >= 0 else 128 - status}\n".encode())


def run(asked: dict[str, Any], streams: list[int]) -> None:
    """Become the command; ends the process."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    sys.argv = ["saccade", *asked["arguments"]]
    from saccade_server.cli import main as saccade

    saccade()
    sys.exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
