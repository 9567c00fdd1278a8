"""``saccade methods``: the interventions as a table, and which of them a model supports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from saccade_server.engine.config import EngineConfig


async def on_the_model(config: EngineConfig) -> list[dict[str, Any]]:
    """What a server with this configuration would list, after its self-test.

    Raises:
        UnsupportedModelError: the model cannot be served.
    """
    from saccade_server.inprocess import open_server

    async with open_server(config, "model", self_test=True) as client:
        listing: list[dict[str, Any]] = (await client.get("/v1/interventions")).json()["data"]
    return listing


def catalogue(listing: Sequence[Mapping[str, Any]]) -> Table:
    """Methods as a table; the last column is what the listing knows of a model, if of one."""
    table = Table(box=None)
    checked = any("supported" in facts for facts in listing)
    for title in ("method", "edits", "needs"):
        table.add_column(title, no_wrap=True)
    for title in ("what it does", *(["on this model"] if checked else [])):
        table.add_column(title, overflow="fold", ratio=1)
    for facts in listing:
        last = [support(facts)] if checked else []
        table.add_row(facts["id"], facts["level"], needs(facts), facts["summary"], *last)
    return table


def needs(facts: Mapping[str, Any]) -> str:
    """What a request for the method must bring."""
    return ", ".join(name for name in ("image", "artifact") if facts[f"needs_{name}"])


def support(facts: Mapping[str, Any]) -> str:
    """Whether the model supports the method, or why not."""
    if not facts["supported"]:
        return str(facts["reason"])
    return "supported" if facts["tested"] else "supported, untested: its test is too long here"
