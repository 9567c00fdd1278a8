"""The answers of one setting: from the log where it has them, from the server otherwise."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from saccade_server import __version__
from saccade_server.evaluation.asking import Asker, Reply, user_message
from saccade_server.evaluation.items import Item
from saccade_server.evaluation.log import WorkLog
from saccade_server.evaluation.settings import Setting

SEED_STRIDE = 1_000_003
"""Sampled answers to different items of one seed are drawn with different seeds."""


class Answers:
    """Asks each question of each setting once, over any number of runs with the same log.

    Args:
        identity: what tells the model from others; part of every entry's key.
        sampling: fields of each request; with a temperature, the request's seed comes from the
            item's.
        advance: called after each answer that is new or known.
    """

    def __init__(
        self,
        asker: Asker,
        log: WorkLog,
        identity: str,
        sampling: dict[str, Any],
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        self._asker = asker
        self._log = log
        self._identity = identity
        self._sampling = sampling
        self._advance = advance
        self._known = {
            (entry["run"], entry["item"]): Reply(
                entry["text"], entry["tokens"], tuple(entry["status"])
            )
            for entry in log.entries
        }

    async def of(self, setting: Setting, items: Sequence[Item]) -> list[Reply]:
        """The setting's answers, in order.

        Raises:
            SettingRefused: the server does not do this on some item; nothing more is asked.
            EvaluationError: the server failed.
        """
        run = self._key(setting)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(run, setting, item)) for item in items]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _one(self, run: str, setting: Setting, item: Item) -> Reply:
        reply = self._known.get((run, item.name))
        if reply is None:
            question = item.example.question
            messages = user_message(question, [item.image_url])
            sampling = {**self._sampling, "seed": item.seed * SEED_STRIDE + item.index}
            reply = await self._asker.ask(messages, setting.entries(question), sampling)
            self._known[run, item.name] = reply
            entry = {"run": run, "item": item.name, "text": reply.text, "tokens": reply.tokens}
            self._log.append({**entry, "status": list(reply.status)})
        self._advance()
        return reply

    def _key(self, setting: Setting) -> str:
        """One for all runs that must give the same answers."""
        facts = [__version__, self._identity, list(setting.interventions), self._sampling]
        text = json.dumps(facts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
