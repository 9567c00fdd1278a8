"""How likely given continuations are under interventions, by the engine that serves requests.

Each continuation is forced, token by token, behind its prompt; plans, tables and attention are
those of a request with the same entry. What is measured is therefore what a request would get.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from saccade_interventions.artifacts import Artifact
from saccade_interventions.errors import InterventionError
from saccade_interventions.registry import Registry
from saccade_server.calibration.examples import CalibrationError, Labelled
from saccade_server.engine.client import EngineClient
from saccade_server.engine.core import EngineCore
from saccade_server.engine.limits import why_refused
from saccade_server.engine.local import LocalEngine
from saccade_server.engine.request import FinishReason, GenerateRequest, SamplingParams
from saccade_server.models.conversation import Message, PromptError
from saccade_server.models.prompt import PromptProcessor, RenderedPrompt
from saccade_server.requests.facts import facts_of
from saccade_server.requests.limits import check_one_step
from saccade_server.requests.prepared import prepare

CONCURRENCY = 64


@dataclass(frozen=True)
class Case:
    """A prompt and what should follow it; ``place`` is where it comes from."""

    place: str
    prompt: RenderedPrompt
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """Of one continuation: its log-probability, and whether a greedy answer would be it.

    ``logprob`` is -inf if the model's numbers overflowed.
    """

    logprob: float
    right: bool


def case_of(example: Labelled, prompts: PromptProcessor, answer: str | None = None) -> Case:
    """The right answer behind the conversation; without ``answer`` the assistant's last message.

    The end of the turn belongs to the continuation where the model's template ends it with a token
    that ends answers.

    Raises:
        CalibrationError: the conversation cannot be rendered, or not with this answer.
    """
    messages = example.as_messages()
    begun = messages[-1] if example.said is not None else None
    if answer is None:
        assert begun is not None
        whole, before, continued = messages, messages[:-1], False
    elif begun is not None:
        ended = Message("assistant", (*begun.parts[:-1], f"{example.said}{answer}"))
        whole, before, continued = [*messages[:-1], ended], messages, True
    else:
        whole, before, continued = [*messages, Message("assistant", (answer,))], messages, False
    try:
        start = prompts.chat(before, not continued, continue_final_message=continued)
        closed = prompts.chat(whole, add_generation_prompt=False).tokens
        tokens = prompts.chat(whole, continue_final_message=True).tokens
    except PromptError as error:
        raise CalibrationError(f"{example.place}: {error}") from None
    length = len(start.tokens)
    if tokens[:length] != start.tokens or len(tokens) == length:
        message = "the model's template does not write its answer behind the prompt"
        raise CalibrationError(f"{example.place}: {message}")
    end = closed[len(tokens) : len(tokens) + 1] if closed[: len(tokens)] == tokens else ()
    ends = end if set(end) <= set(prompts.eos_token_ids) else ()
    return Case(example.place, start, (*tokens[length:], *ends))


class Scorer:
    """Scores cases under entries; ``artifacts`` are those that entries may name, by digest."""

    def __init__(
        self, engine: EngineClient, prompts: PromptProcessor, artifacts: Mapping[str, Artifact]
    ) -> None:
        self._engine = engine
        self._registry = Registry.discover()
        self._facts = facts_of(engine.info, prompts.special_token_ids)
        self._artifacts = artifacts
        self._gate = asyncio.Semaphore(CONCURRENCY)
        self._asked = 0

    async def score(self, cases: Sequence[Case], entry: Mapping[str, Any] | None) -> list[Score]:
        """What each case gets under an entry; None: without interventions.

        Raises:
            CalibrationError: the server would refuse it; with the case's place.
        """
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(case, entry)) for case in cases]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _one(self, case: Case, entry: Mapping[str, Any] | None) -> Score:
        async with self._gate:
            request = self._request(case, entry)
            total, right = 0.0, True
            async for output in self._engine.submit(request):
                if output.diverged:
                    total, right = -math.inf, False
                elif output.finish_reason is FinishReason.ERROR:
                    raise CalibrationError(f"{case.place}: the engine failed: {output.error}")
                for found in output.logprobs:
                    total += found.logprob
                    right = right and found.token == max(found.top, key=lambda item: item[1])[0]
        return Score(total, right)

    def _request(self, case: Case, entry: Mapping[str, Any] | None) -> GenerateRequest:
        info, entries = self._engine.info, [] if entry is None else [dict(entry)]
        try:
            interventions = self._registry.parse(entries)
            prepared = prepare(case.prompt, interventions, self._facts, self._artifacts.get)
            check_one_step(prepared, info)
        except InterventionError as error:
            raise CalibrationError(f"{case.place}: {error}") from None
        self._asked += 1
        sampling = SamplingParams(
            max_tokens=len(case.continuation),
            temperature=0.0,
            ignore_eos=True,
            logprobs=1,
            forced=case.continuation,
        )
        request = prepared.request(f"scored-{self._asked}", sampling)
        refused = why_refused(request, info)
        if refused is not None:
            raise CalibrationError(f"{case.place}: {refused}")
        return request


@asynccontextmanager
async def scoring(
    core: EngineCore, prompts: PromptProcessor, artifacts: Mapping[str, Artifact]
) -> AsyncIterator[Scorer]:
    """A scorer over a loaded engine, which runs in a thread until the end."""
    engine = LocalEngine(core)
    try:
        yield Scorer(engine, prompts, artifacts)
    finally:
        await engine.close()
