"""Drive an engine core: take commands, step while there is work, send what is new."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from saccade_server.engine.core import EngineCore
from saccade_server.engine.messages import (
    Abort,
    AskStats,
    Command,
    Outputs,
    Reply,
    Shutdown,
    Stats,
    Submit,
)
from saccade_server.engine.request import EngineOutput


def run_loop(
    core: EngineCore,
    receive: Callable[[bool], Iterable[Command]],
    send: Callable[[Reply], None],
) -> None:
    """Serve until told to shut down.

    Args:
        receive: gives the commands that have come; its argument says whether it may wait a while
            for the first one, which it must not do while there is work.
        send: hands a reply to the other side.
    """
    while True:
        for command in receive(not core.busy):
            if isinstance(command, Shutdown):
                return
            reply = _obey(core, command)
            if reply is not None:
                send(reply)
        outputs = core.step() if core.busy else []
        if outputs:
            send(Outputs(outputs))


def _obey(core: EngineCore, command: Submit | Abort | AskStats) -> Reply | None:
    if isinstance(command, AskStats):
        return Stats(command.ticket, core.stats())
    output: EngineOutput | None
    if isinstance(command, Submit):
        output = core.submit(command.request)
    else:
        output = core.abort(command.request_id)
    return None if output is None else Outputs([output])
