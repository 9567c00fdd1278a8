"""Runs all prompts once plain and once for each attention head, with only that head edited.

What is done goes to a log beside the output, head by head; a sweep that was stopped goes on behind
it. The log opens with a hash of everything that decides the numbers, so another sweep's log is
refused and never mixed in.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saccade_server.calibration.examples import CalibrationError, Labelled
from saccade_server.evaluation.asking import UNTHINKING, Asker
from saccade_server.evaluation.errors import SettingRefused
from saccade_server.evaluation.log import WorkLog

Head = tuple[int, int]
"""Layer and query head."""

ALTERNATIVES = 20
"""First tokens whose probabilities a server tells."""


@dataclass(frozen=True)
class Result:
    """How one run went: answers that begin with their label, and mean log p of the label's start.

    ``logprob`` is None where it was not asked for.
    """

    right: int
    total: int
    logprob: float | None = None

    @property
    def accuracy(self) -> float:
        return self.right / self.total


Measure = Callable[[Asker, list[dict[str, Any]], Labelled, list[dict[str, Any]]], Any]
"""Ask one prompt under some entries: (right, log p or None)."""


class Sweep:
    """Asks everything that the log does not know yet.

    Args:
        entries: the interventions that edit one head.
        facts: what else decides the numbers, plain JSON.
    """

    def __init__(
        self,
        asker: Asker,
        examples: Sequence[Labelled],
        entries: Callable[[Head], list[dict[str, Any]]],
        measure: Measure,
        log: WorkLog,
        facts: Sequence[Any],
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        self._asker = asker
        self._examples = [(example, example.as_chat()) for example in examples]
        self._entries = entries
        self._measure = measure
        self._log = log
        self._advance = advance
        content = [facts, [[messages, example.right] for example, messages in self._examples]]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        self._known = {
            tuple(entry["head"]) if entry["head"] else None: Result(**entry["result"])
            for entry in log.begin("sweep", digest)
        }

    async def run(self, heads: Sequence[Head]) -> tuple[Result, dict[Head, Result]]:
        """The result without edits, and that of each head.

        Raises:
            CalibrationError: the server refuses a prompt; with its line.
            EvaluationError: the server failed.
        """
        baseline = await self._one(None)
        return baseline, {head: await self._one(head) for head in heads}

    async def _one(self, head: Head | None) -> Result:
        if head in self._known:
            for _ in self._examples:
                self._advance()
            return self._known[head]
        entries = [] if head is None else self._entries(head)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._ask(example, messages, entries))
                    for example, messages in self._examples
                ]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        outcomes = [task.result() for task in tasks]
        logs = [value for _, value in outcomes if value is not None]
        mean = math.fsum(logs) / len(logs) if logs else None
        result = Result(sum(right for right, _ in outcomes), len(outcomes), mean)
        self._known[head] = result
        self._log.append({"head": head and list(head), "result": asdict(result)})
        return result

    async def _ask(
        self, example: Labelled, messages: list[dict[str, Any]], entries: list[dict[str, Any]]
    ) -> tuple[bool, float | None]:
        try:
            found: tuple[bool, float | None] = await self._measure(
                self._asker, messages, example, entries
            )
        except SettingRefused as refusal:
            raise CalibrationError(f"{example.place}: {refusal}") from None
        self._advance()
        return found


async def by_answer(
    asker: Asker, messages: list[dict[str, Any]], example: Labelled, entries: list[dict[str, Any]]
) -> tuple[bool, float | None]:
    """Right if the greedy answer begins with the label; it is cut where the label must have ended.

    A token has at least one byte, so no more tokens than the label has bytes are needed.
    """
    label = example.right.strip()
    sampling = {"temperature": 0, "max_tokens": len(label.encode()) + 1, **UNTHINKING}
    reply = await asker.ask(messages, entries, sampling)
    return reply.text.strip().startswith(label), None


async def by_first_token(
    asker: Asker, messages: list[dict[str, Any]], example: Labelled, entries: list[dict[str, Any]]
) -> tuple[bool, float | None]:
    """The probability that the answer's first token is a beginning of the label.

    Only the likeliest tokens are known. If no beginning of the label is among them, the probability
    is taken to be that of the last of them, which it cannot exceed.
    """
    label = example.right.strip()
    tokens = await asker.likely_tokens(messages, entries, ALTERNATIVES)
    begins = {
        text: value
        for text, value in tokens.items()
        if text.strip() and label.startswith(text.strip())
    }
    best = max(tokens, key=lambda text: tokens[text])
    if not begins:
        return False, min(tokens.values())
    return best in begins, math.log(math.fsum(math.exp(value) for value in begins.values()))


def log_path(out: Path) -> Path:
    """Where the log of an output is."""
    return out.with_name(out.name + ".log.jsonl")
