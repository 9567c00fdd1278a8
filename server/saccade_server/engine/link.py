"""The engine's side of the socket to the API process: what its process does from load to end."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable

import msgspec
import zmq

from saccade_server.engine.config import EngineConfig
from saccade_server.engine.heartbeat import Progress
from saccade_server.engine.load import load_core
from saccade_server.engine.loop import run_loop
from saccade_server.engine.messages import Command, Failed, Ready, Reply, decode_command, encode

logger = logging.getLogger(__name__)

IDLE_MILLISECONDS = 1000


class ParentLink:
    """The socket to the API process."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._socket.connect(endpoint)

    def send(self, reply: Reply) -> None:
        """Queue a reply; a background thread carries it."""
        self._socket.send(encode(reply))

    def receive(self, wait: bool) -> Iterable[Command]:
        """Commands that have come; with ``wait`` the first one may take a while."""
        if wait:
            self._socket.poll(IDLE_MILLISECONDS)
        while self._socket.poll(0):
            yield decode_command(self._socket.recv())

    def close(self) -> None:
        """Give the last messages a second to leave."""
        self._socket.close(linger=1000)
        self._context.term()


def run(endpoint: str, config: str, progress: Progress) -> int:
    """Load the model, announce it, serve. Returns the process's exit code."""
    link = ParentLink(endpoint)
    try:
        try:
            core = load_core(msgspec.json.decode(config, type=EngineConfig))
        except (ValueError, OSError) as error:  # what an operator can mend, in a sentence
            logger.debug("the model cannot be loaded", exc_info=error)
            link.send(Failed(str(error)))
            return 1
        gc.collect()
        gc.freeze()  # the model's many objects need not be looked at again
        link.send(Ready(core.info))
        run_loop(core, link.receive, link.send, progress)
    except Exception as error:
        logger.exception("the engine failed")
        link.send(Failed(f"{type(error).__name__}: {error}"))
        return 1
    finally:
        link.close()
    return 0
