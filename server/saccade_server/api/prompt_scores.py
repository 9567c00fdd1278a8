"""What an answer says of its prompt: the text, echoed, and how likely each token of it was.

Rows that predict tokens of the prompt are its own, all but the last. So what a request edits in
them shows here; what it edits in other rows does not, and where nothing else would show it, it is
refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from saccade_interventions.errors import Code, InterventionError
from saccade_server.api.body.schemas import CompletionRequest, Sampled
from saccade_server.api.errors import BadRequest, EngineFailure, TooLarge
from saccade_server.api.logprobs import TokenNames, echoed_logprobs, prompt_logprobs
from saccade_server.engine.request import GenerateRequest
from saccade_server.requests.errors import diverged
from saccade_server.requests.prepared import Prepared
from saccade_server.requests.receipts import acts, phases
from saccade_server.requests.scores import ScoreLog, TokenScore, scoring

MOST_NUMBERS = 2**19
"""Log-probabilities that one request may ask for, of all its prompts: about 40 MB of JSON."""

OFF_LOOP_NUMBERS = 2**12
"""More of them are written in a worker: other answers would wait."""


@dataclass(frozen=True)
class PromptScoring:
    """What a request wants of its prompts.

    ``echo``: their texts, ``echoed``: their log-probabilities in an echo, ``listed``: those in
    ``prompt_logprobs``; the two with how many of the likeliest tokens, None: not at all.
    """

    echo: bool = False
    echoed: int | None = None
    listed: int | None = None

    @classmethod
    def of(cls, body: Sampled) -> PromptScoring:
        """What a request says.

        Raises:
            BadRequest: it asks for nothing at all.
        """
        echo = isinstance(body, CompletionRequest) and bool(body.echo)
        echoed = body.logprobs if isinstance(body, CompletionRequest) and echo else None
        found = cls(echo, echoed, body.prompt_logprobs)
        length, param = body.length
        if length == 0 and not echo and found.listed is None:
            message = (
                f"With {param} 0 nothing is generated; it goes with prompt_logprobs, or with the "
                "echo of a plain prompt."
            )
            raise BadRequest(message, param=param)
        return found

    @property
    def top(self) -> int | None:
        """How many of the likeliest tokens are told for each of the prompt; None: no scores."""
        asked = [most for most in (self.echoed, self.listed) if most is not None]
        return max(asked, default=None)

    @property
    def shows(self) -> bool:
        """True if answers show anything of their prompts."""
        return self.echo or self.listed is not None

    @property
    def param(self) -> str:
        """The field that asks for scores."""
        return "logprobs" if self.listed is None else "prompt_logprobs"

    def check(self, prompts: Sequence[Prepared], answers: int, length: int | None) -> None:
        """Refuse more numbers than an answer may have, and what could not show in them.

        Args:
            prompts: of the request.
            answers: to each of them.
            length: the most tokens of an answer.

        Raises:
            TooLarge: there would be too many.
            InterventionError: an intervention edits no row that the request tells anything of.
        """
        numbers = self.numbers(prompts, answers)
        if numbers > MOST_NUMBERS:
            message = (
                f"The log-probabilities of these prompts are {numbers} numbers, and a request "
                f"may ask for {MOST_NUMBERS}: ask for fewer alternatives, or for less at once."
            )
            raise TooLarge(message, param=self.param)
        # Evaluation harnesses ask for likelihoods with a token of an answer that they throw away.
        if length == 0 or (length == 1 and self.echoed is not None):
            for prompt in prompts:
                _check_acts(prompt)

    def numbers(self, prompts: Sequence[Prepared], answers: int) -> int:
        """Log-probabilities of so many answers to each of these prompts."""
        return 0 if self.top is None else _length(prompts) * answers * (self.top + 1)

    def on(self, request: GenerateRequest) -> GenerateRequest:
        """The request with what is to be read of its prompt."""
        return request if self.top is None else scoring(request, 0, request.tokens[1:], self.top)


def _length(prompts: Sequence[Prepared]) -> int:
    return sum(prompt.length for prompt in prompts)


def _check_acts(prompt: Prepared) -> None:
    """Refuse interventions that act, and not on rows that predict a token of the prompt."""
    plan = prompt.plan
    if plan is None:
        return
    scored = {phase for phase, _ in plan.phases_of(0, prompt.length - 1)}
    for index, item in enumerate(prompt.interventions):
        if acts(index, [plan]) and not phases(index, plan) & scored:
            message = (
                f"{item.method_id()} edits no row that predicts a token of the prompt, so nothing "
                "of what this request asks for would show it. POST /v1/score tells how likely "
                "answers are under it."
            )
            raise InterventionError(Code.INVALID_PARAMS, message, f"interventions[{index}]")


@dataclass(frozen=True)
class PromptScores:
    """The prompt of a choice, as its answer shows it; ``entries``: of all tokens but the first."""

    wanted: PromptScoring
    prompt: Prepared
    entries: Sequence[TokenScore] = ()

    @property
    def text(self) -> str:
        """What stands before the answer's own text."""
        return self.prompt.prompt.text if self.wanted.echo else ""

    def listed(self, names: TokenNames) -> dict[str, Any]:
        """The field of a choice, or of a chat's answer, if it was asked for."""
        most = self.wanted.listed
        if most is None:
            return {}
        return {"prompt_logprobs": prompt_logprobs(names, self.entries, most)}

    def echoed(self, names: TokenNames) -> dict[str, list[Any]]:
        """Log-probabilities before those of the answer; empty if they were not asked for."""
        most = self.wanted.echoed
        if most is None:
            return {}
        kept = [replace(entry, top=entry.top[:most]) for entry in self.entries]
        return echoed_logprobs(names, self.prompt.tokens[0], kept, self._offsets())

    def _offsets(self) -> list[int]:
        """Where each token begins; one that has no text is where the one before began."""
        found: list[int] = []
        for start, _ in self.prompt.prompt.offsets:
            found.append(max(start, found[-1] if found else 0))
        return found


def entries_of(log: ScoreLog | None, methods: Sequence[str]) -> list[TokenScore]:
    """The scores that a sequence under these methods was asked for.

    Raises:
        InterventionError: the model's numbers overflowed under them.
        EngineFailure: they overflowed without, or scores are missing.
    """
    if log is None:
        return []
    if not log.is_finite:
        raise diverged(methods) if methods else EngineFailure()
    try:
        return log.entries()
    except ValueError:
        raise EngineFailure() from None
