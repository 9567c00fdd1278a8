"""The last word to requests that nothing else answers."""

import asyncio
from typing import Any

import pytest

from saccade_server.api.layers.ending import EndUnanswered
from saccade_server.api.layers.record import RECORD, Record
from saccade_server.api.lifecycle import Lifecycle


@pytest.mark.parametrize(("began_work", "status"), [(0.0, 503), (1.0, 500)])
def test_only_what_was_not_begun_is_said_to_be_fit_for_another_server(
    began_work: float, status: int
) -> None:
    """What is abandoned may have been generated already, and be in the making of its answer."""
    record = Record("a", began_work=began_work)
    sent: list[Any] = []

    async def never(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(60)

    async def keep(message: Any) -> None:
        sent.append(message)

    async def main() -> None:
        lifecycle = Lifecycle()
        served: Any = EndUnanswered(never, lifecycle)
        scope = {"type": "http", RECORD: record}
        serving = asyncio.create_task(served(scope, None, keep))
        await asyncio.sleep(0)
        await lifecycle.abandon(5)
        await serving

    asyncio.run(main())
    assert (sent[0]["status"], record.error) == (status, "server_draining")
