"""Entry point of the engine process; its arguments are a socket, a configuration, its parent."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Iterable

import msgspec
import zmq

from saccade_server.engine.config import EngineConfig
from saccade_server.engine.load import load_core
from saccade_server.engine.loop import run_loop
from saccade_server.engine.messages import (
    Command,
    Failed,
    Ready,
    Reply,
    Shutdown,
    decode_command,
    encode,
)

logger = logging.getLogger(__name__)

IDLE_MILLISECONDS = 1000
"""How often an idle engine looks whether its parent still lives."""


class ParentLink:
    """The socket to the API process."""

    def __init__(self, endpoint: str, parent: int) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._socket.connect(endpoint)
        self._parent = parent

    def send(self, reply: Reply) -> None:
        """Queue a reply; a background thread carries it."""
        self._socket.send(encode(reply))

    def receive(self, wait: bool) -> Iterable[Command]:
        """Commands that have come; an orphan is told to shut down."""
        if wait and not self._socket.poll(IDLE_MILLISECONDS) and os.getppid() != self._parent:
            yield Shutdown()
        while self._socket.poll(0):
            yield decode_command(self._socket.recv())

    def close(self) -> None:
        """Give the last messages a second to leave."""
        self._socket.close(linger=1000)
        self._context.term()


def main(endpoint: str, config: EngineConfig, parent: int) -> int:
    """Load, announce, serve. Returns the process's exit code."""
    # A signal to the whole process group must not end what requests in flight wait for: the API
    # process decides when to stop, and if it is gone the link notices.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    link = ParentLink(endpoint, parent)
    try:
        core = load_core(config)
        gc.collect()
        gc.freeze()  # the model's many objects need not be looked at again
        link.send(Ready(core.info))
        run_loop(core, link.receive, link.send)
    except Exception as error:
        logger.exception("the engine failed")
        link.send(Failed(f"{type(error).__name__}: {error}"))
        return 1
    finally:
        link.close()
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    configuration = msgspec.json.decode(sys.argv[2], type=EngineConfig)
    sys.exit(main(sys.argv[1], configuration, int(sys.argv[3])))
