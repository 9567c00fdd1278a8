"""Drive an engine core: take commands, step while there is work, send what is new."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from msgspec.structs import replace

from saccade_server.engine.core import EngineCore
from saccade_server.engine.heartbeat import Progress
from saccade_server.engine.lending import with_pixels
from saccade_server.engine.messages import (
    Abort,
    AskStats,
    Command,
    Lend,
    Outputs,
    Reclaim,
    Reply,
    Shutdown,
    Stats,
    Submit,
)
from saccade_server.engine.request import Array, EngineOutput, GenerateRequest
from saccade_server.engine.traces.data import PART_BYTES, TracePiece


def run_loop(
    core: EngineCore,
    receive: Callable[[bool], Iterable[Command]],
    send: Callable[[Reply], None],
    progress: Progress,
) -> None:
    """Serve until told to shut down.

    Args:
        receive: gives the commands that have come; its argument says whether it may wait a while
            for the first one, which it must not do while there is work.
        send: hands a reply to the other side.
        progress: is told of every step, and when work comes and ends.
    """
    commands = _Commands(core)
    while True:
        for command in receive(not core.busy):
            progress.note(core.steps, True)
            if isinstance(command, Shutdown):
                return
            reply = commands.obey(command)
            if reply is not None:
                _send(send, reply)
        outputs = core.step() if core.busy else []
        if outputs:
            _send(send, commands.pack(outputs))
        progress.note(core.steps, core.busy)


def _send(send: Callable[[Reply], None], reply: Reply) -> None:
    """Hand a reply over: large traces by themselves, in parts, behind all that is small.

    Whoever takes a message does nothing else meanwhile, and neighbours' tokens are to wait for
    none of another's trace.
    """
    if not isinstance(reply, Outputs):
        send(reply)
        return
    large = [output for output in reply.outputs if _size(output.trace) > PART_BYTES]
    if not large:
        send(reply)
        return
    small = [output for output in reply.outputs if _size(output.trace) <= PART_BYTES]
    if reply.numbers or small:
        send(Outputs(reply.numbers, reply.tokens, small))
    for output in large:
        *parts, last = _parts(output.trace)
        for part in parts:
            send(Outputs(outputs=[EngineOutput(request_id=output.request_id, trace=part)]))
        send(Outputs(outputs=[replace(output, trace=last)]))


def _size(trace: Iterable[TracePiece]) -> int:
    return sum(len(piece.array.data) for piece in trace)


def _parts(trace: Iterable[TracePiece]) -> Iterator[tuple[TracePiece, ...]]:
    """Pieces in order, together as long as they are small."""
    part: list[TracePiece] = []
    for piece in trace:
        if part and _size([*part, piece]) > PART_BYTES:
            yield tuple(part)
            part = []
        part.append(piece)
    yield tuple(part)


class _Commands:
    """Carries commands out; keeps the pixels that requests refer to, and the requests' numbers."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self._pixels: dict[str, Array] = {}
        self._numbers: dict[str, int] = {}

    def obey(self, command: Lend | Reclaim | Submit | Abort | AskStats) -> Reply | None:
        match command:
            case Lend():
                self._pixels[command.digest] = command.pixels
                return None
            case Reclaim():
                self._pixels.pop(command.digest, None)
                return None
            case AskStats():
                return Stats(command.ticket, self._core.stats())
            case Submit():
                refusal = self._core.submit(self._with_pixels(command.request))
                if refusal is not None:
                    return Outputs(outputs=[refusal])
                self._numbers[command.request.request_id] = command.number
                return None
            case Abort():
                output = self._core.abort(command.request_id)
        return None if output is None else self.pack([output])

    def pack(self, outputs: Iterable[EngineOutput]) -> Outputs:
        """One message of all that is new: what is no more than a token as two numbers."""
        numbers: list[int] = []
        tokens: list[int] = []
        others: list[EngineOutput] = []
        for output in outputs:
            last = output.finish_reason is not None
            number = self._numbers.get(output.request_id)
            more = last or output.logprobs or output.trace
            if more or len(output.tokens) != 1 or number is None:
                others.append(output)
            else:
                numbers.append(number)
                tokens.append(output.tokens[0])
            if last:
                self._numbers.pop(output.request_id, None)
        return Outputs(numbers, tokens, others)

    def _with_pixels(self, request: GenerateRequest) -> GenerateRequest:
        return with_pixels(request, lambda image: self._pixels[image.digest])
