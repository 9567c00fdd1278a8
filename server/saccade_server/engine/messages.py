"""What the two sides of an engine say to each other, as MessagePack tagged by type."""

from __future__ import annotations

import msgspec

from saccade_server.engine.request import (
    Array,
    EngineInfo,
    EngineOutput,
    EngineStats,
    GenerateRequest,
)


class Lend(msgspec.Struct, frozen=True, tag=True):
    """Pixels for requests to come, so that several requests send an image once."""

    digest: str
    pixels: Array


class Reclaim(msgspec.Struct, frozen=True, tag=True):
    """No open request has this image any more."""

    digest: str


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Queue a request; its images' pixels were lent before.

    ``number`` stands for it in :class:`Outputs`; no two requests of a client share one.
    """

    request: GenerateRequest
    number: int


class Abort(msgspec.Struct, frozen=True, tag=True):
    """End a sequence."""

    request_id: str


class AskStats(msgspec.Struct, frozen=True, tag=True):
    """Answered by :class:`Stats` with the same ticket."""

    ticket: int


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """End the engine."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded."""

    info: EngineInfo


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The engine cannot start or cannot go on, and ends."""

    reason: str


class Outputs(msgspec.Struct, frozen=True, tag=True):
    """News of one step, in one message.

    The sequence with the number ``numbers[i]`` has the next token ``tokens[i]``, and nothing else
    is new about it; whatever says more is in ``outputs``.
    """

    numbers: list[int] = []
    tokens: list[int] = []
    outputs: list[EngineOutput] = []


class Stats(msgspec.Struct, frozen=True, tag=True):
    """Answer to :class:`AskStats`."""

    ticket: int
    stats: EngineStats


Command = Lend | Reclaim | Submit | Abort | AskStats | Shutdown
Reply = Ready | Failed | Outputs | Stats

encode = msgspec.msgpack.Encoder().encode
decode_command = msgspec.msgpack.Decoder[Command](Command).decode
decode_reply = msgspec.msgpack.Decoder[Reply](Reply).decode
