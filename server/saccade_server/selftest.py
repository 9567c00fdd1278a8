"""The self-test at start: what each method does to this model, before it is offered.

Every method that the model supports runs once, alone, on a small synthetic prompt, with the entry
that its class calls its probe. The plain prompt runs alone too, so both pass through the engine at
the same sizes, and no cached page is shared. A method passes if

- its probe shows: the log-probabilities that tokens are drawn from differ from the plain run's by
  more than rounding could explain. A method that chooses among candidates leaves them alone; it
  passes if it rejected one, or chose otherwise;
- its neutral entry, if it has one, compiles to no plan, which makes it the plain request itself, or
  runs bit for bit as the plain prompt does.

That says nothing about the path that edited rows take. So once, before any method, a plan runs that
takes it and changes nothing: scores of a class without keys, masses behind a gate that never opens,
and at every site an edit whose bounds no row lies between. Where it differs from the plain run by
more than rounding, no method is offered.

A plain answer that is not made of finite numbers is no matter of methods: the model cannot be
served, and the self-test raises what stops the server. An edited one is a fault of its method.

A method that this prompt is too long for, though a shorter one would fit the server's limits, is
offered untested, and so is what the time for the test does not suffice for. The log names them, and
``GET /v1/interventions`` says of each method whether it was tested.

What this does not prove: that the numbers are right. The tests of the methods do.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from saccade_interventions.artifacts import Artifact, read_artifact
from saccade_interventions.base import PROBE_SIDE, PROBE_TEXT, Intervention
from saccade_interventions.builder import PlanBuilder
from saccade_interventions.edits import NO_LIMIT, ResidualEdit
from saccade_interventions.errors import InterventionError
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.phases import Phase
from saccade_interventions.plan import Plan
from saccade_interventions.registry import Registry
from saccade_kernels.residual import SiteKind
from saccade_server.engine.client import CapacityError, EngineClient
from saccade_server.engine.limits import why_group_refused, why_too_long
from saccade_server.engine.request import (
    NOT_FINITE,
    FinishReason,
    SamplingParams,
    TokenLogprobs,
)
from saccade_server.models.conversation import Message, PromptError
from saccade_server.models.folder import UnsupportedModelError
from saccade_server.models.prompt import PromptProcessor, RenderedPrompt
from saccade_server.requests.facts import facts_of
from saccade_server.requests.limits import room
from saccade_server.requests.prepared import prepare, under
from saccade_server.status_line import StatusLine
from saccade_server.trial import Trial, are_numbers, largest_change

logger = logging.getLogger("saccade.selftest")

TOKENS = 4
"""Of each answer: enough for rows behind generated ones, and for a candidate to be rejected."""

ALTERNATIVES = 20
ROUNDING = {"float32": 1e-4, "float64": 1e-9}
"""What a change of a log-probability must exceed, by the model's type."""
HALF_ROUNDING = 0.1
REJECTIONS = "reject"
"""What the names of counters of rejected candidates begin with."""


IMPOSSIBLE = 2.0
"""Threshold of a gate on attention, which is 1 in all."""


class SelfTestError(Exception):
    """A prompt could not be run; the message says why."""


class TooLong(Exception):
    """The prompt of the self-test is too long for a method on this server; the message says why."""


@dataclass(frozen=True)
class Findings:
    """What came out, by method and with the reason.

    ``faults``: supported by the model, but did not pass. ``untested``: offered without a test.
    ``tested``: the methods that passed.
    """

    faults: Mapping[str, str]
    untested: Mapping[str, str]
    tested: frozenset[str] = frozenset()


async def examine(
    engine: EngineClient,
    prompts: PromptProcessor,
    registry: Registry,
    seconds: float | None = None,
) -> Findings:
    """Try every method that the model supports; what ``seconds`` do not suffice for is left out.

    The plain prompt runs whatever it takes: without it nothing is known of the model.

    Raises:
        EngineDeadError: the engine died of it.
        UnsupportedModelError: the model's own answer is not made of finite numbers.
    """
    began = time.perf_counter()
    facts = facts_of(engine.info, prompts.special_token_ids)
    kinds = {
        name: kind for name, kind in registry.methods.items() if kind.unsupported(facts) is None
    }
    line = StatusLine()
    line.show("self-test: the model without interventions")
    try:
        bench = await _Bench.open(engine, prompts, facts)
    except SelfTestError as error:
        line.clear()
        logger.error("self-test: no method can be shown: %s", error)
        why = f"nothing can be shown on this model: {error}"
        return Findings(dict.fromkeys(kinds, why), {})
    faults: dict[str, str] = {}
    untested: dict[str, str] = {}
    over = f"the {seconds or 0:g} s of the self-test were over"
    for place, (name, kind) in enumerate(kinds.items(), 1):
        spent = time.perf_counter() - began
        if seconds is not None and spent >= seconds:
            untested[name] = over
            continue
        line.show(f"self-test: {name}, {place} of {len(kinds)}, after {spent:.0f} s{_of(seconds)}")
        log = logger.debug if line.shown else logger.info
        log("self-test: %s, %d of %d, after %.1f s", name, place, len(kinds), spent)
        try:
            async with asyncio.timeout(None if seconds is None else seconds - spent):
                reason = await bench.examine(kind, registry)
        except TooLong as error:
            untested[name] = str(error)
        except TimeoutError:
            untested[name] = over
        else:
            if reason is not None:
                line.clear()
                logger.warning("self-test: %s is not offered: %s", name, reason)
                faults[name] = reason
    line.clear()
    for why in dict.fromkeys(untested.values()):
        names = ", ".join(name for name, other in untested.items() if other == why)
        logger.warning("self-test: offered untested: %s: %s", names, why)
    tested = kinds.keys() - faults.keys() - untested.keys()
    spent = time.perf_counter() - began
    logger.info("self-test: %d of %d methods passed in %.1f s", len(tested), len(kinds), spent)
    return Findings(faults, untested, frozenset(tested))


def _of(seconds: float | None) -> str:
    return "" if seconds is None else f" of at most {seconds:g} s"


class _Bench:
    """The prompt, and what the model says to it without an intervention."""

    def __init__(self, engine: EngineClient, prompt: RenderedPrompt, facts: ModelFacts) -> None:
        self._engine = engine
        self._prompt = prompt
        self._facts = facts
        self._plain = Trial((), (), None)
        self._rounding = ROUNDING.get(engine.info.dtype, HALF_ROUNDING)

    @classmethod
    async def open(
        cls, engine: EngineClient, prompts: PromptProcessor, facts: ModelFacts
    ) -> _Bench:
        """Run the plain prompt, twice: what differs is rounding. Then run it under no change.

        Raises:
            SelfTestError: it cannot be run, or edits that change nothing change it.
        """
        bench = cls(engine, _render(prompts), facts)
        bench._plain = await bench._run(None)
        noise = largest_change(bench._plain, await bench._run(None))
        if noise:
            logger.warning("self-test: equal requests differ by %.2g in log-probability", noise)
            bench._rounding = max(bench._rounding, 2 * noise)
        await bench._check_identity()
        return bench

    async def _check_identity(self) -> None:
        trial = await self._run(unchanging(self._facts, len(self._prompt.tokens)))
        change = largest_change(self._plain, trial)
        if change > self._rounding:
            message = f"edits that change nothing change its log-probabilities by {change:.2g}"
            raise SelfTestError(message)
        if not self._is_plain(trial):
            logger.warning("self-test: edited rows differ by rounding, %.2g", change)

    async def examine(self, kind: type[Intervention], registry: Registry) -> str | None:
        """Why the method does not pass; None if it does."""
        try:
            probe = kind.probe(self._facts)
            artifact = None if probe.artifact is None else read_artifact(probe.artifact)
            for fields in ({}, *probe.also):
                plan = self._compile(registry, {**probe.entry, **fields}, artifact)
                if plan is None:
                    return "its probe changes nothing"
                reason = self._unseen(kind, await self._run(plan))
                if reason is not None:
                    return f"{reason}, with {fields}" if fields else reason
            if kind.neutral is not None:
                plan = self._compile(registry, {**probe.entry, **kind.neutral}, artifact)
                if plan is not None and not self._is_plain(await self._run(plan)):
                    return "its neutral strength is not bit-identical to none"
        except (InterventionError, SelfTestError) as error:
            return str(error)
        return None

    def _is_plain(self, trial: Trial) -> bool:
        plain = self._plain
        return (trial.tokens, trial.logprobs) == (plain.tokens, plain.logprobs)

    def _unseen(self, kind: type[Intervention], trial: Trial) -> str | None:
        """Why the method does not show in ``trial``; None if it does."""
        if kind.level == "sampling":
            counters = trial.receipt.counters if trial.receipt else ()
            rejected = any(c.value for c in counters if c.name.startswith(REJECTIONS))
            shown = rejected or trial.tokens != self._plain.tokens
            return None if shown else "it rejected no candidate"
        change = largest_change(self._plain, trial)
        if change > self._rounding:
            return None
        return f"it did not change the model's log-probabilities (by {change:.1g} at most)"

    def _compile(
        self, registry: Registry, entry: dict[str, object], artifact: Artifact | None
    ) -> Plan | None:
        def find(digest: str) -> Artifact | None:
            return artifact if artifact is not None and artifact.digest == digest else None

        return prepare(self._prompt, registry.parse([entry]), self._facts, find).plan

    async def _run(self, plan: Plan | None) -> Trial:
        """Generate greedily, alone, with pages of its own.

        Raises:
            SelfTestError: the engine refused the request or failed on it.
            TooLong: with a shorter prompt it could be run.
            UnsupportedModelError: without a plan, it gave what is no finite number.
        """
        info, prompt = self._engine.info, self._prompt
        sampling = SamplingParams(
            max_tokens=TOKENS,
            temperature=0.0,
            ignore_eos=True,
            logprobs=min(ALTERNATIVES, info.vocab_size),
        )
        name = f"self-test-{uuid.uuid4().hex}"
        request = under(plan, prompt).request(name, sampling, cache_salt=name)
        if len(prompt.tokens) + TOKENS > room(info):
            raise SelfTestError("the prompt of the self-test is longer than the server allows")
        too_long = why_too_long(request, info)
        if too_long is not None and plan is not None:
            raise TooLong(too_long)
        refused = why_group_refused(request, info)
        if refused is not None:
            raise SelfTestError(refused)
        tokens: list[int] = []
        logprobs: list[TokenLogprobs] = []
        receipt = None
        try:
            async for output in self._engine.submit(request):
                tokens += output.tokens
                logprobs += output.logprobs
                receipt = output.receipt
                if output.error == NOT_FINITE and plan is None:
                    raise UnsupportedModelError(self._not_numbers())
                if output.finish_reason is FinishReason.ERROR:
                    raise SelfTestError(f"the engine failed on it: {output.error}")
        except CapacityError as error:
            raise SelfTestError(f"the engine has no room for it: {error}") from None
        if not all(map(are_numbers, logprobs)):
            if plan is None:
                raise UnsupportedModelError(self._not_numbers())
            raise SelfTestError("the log-probabilities under it are no numbers")
        return Trial(tuple(tokens), tuple(logprobs), receipt)

    def _not_numbers(self) -> str:
        info = self._engine.info
        return (
            f"{info.model}: the model's own answers are not made of finite numbers in "
            f"{info.dtype}, as the self-test found; serve it in another --dtype (bfloat16 or "
            "float32), and if that does not help, download its weights again"
        )


def unchanging(model: ModelFacts, length: int) -> Plan:
    """A plan for a prompt of ``length`` tokens whose edits run in every row and change nothing."""
    plan = PlanBuilder(model.shape, length, 0)
    nobody = plan.new_class()
    heads = tuple(range(model.heads))
    sites = tuple((layer, heads) for layer in range(model.layers))
    plan.score(sites, [nobody], tuple(Phase), scale=1.0, bias=1.0)
    never = plan.gate({0: 1.0, nobody: 1.0}, IMPOSSIBLE)
    plan.mass(sites, [(nobody, 0, 0.5), (0, 0, -0.5)], tuple(Phase), [never])
    along = plan.vectors(np.eye(1, model.hidden_size, dtype=np.float32))
    edit = ResidualEdit(0, tuple(Phase), along, 0, shift=1.0, above=NO_LIMIT)
    for layer in range(model.layers):
        for kind in SiteKind:
            plan.residual(replace(edit, layer=layer, site=kind))
    plan.residual(replace(edit, layer=model.layers))
    return plan.build()


def _render(prompts: PromptProcessor) -> RenderedPrompt:
    """An image of noise, if the model takes images, and a question.

    Raises:
        SelfTestError: the model's template refuses them.
    """
    parts: list[str | Image.Image] = [PROBE_TEXT]
    if prompts.accepts_images:
        values = np.random.default_rng(0).integers(0, 256, (PROBE_SIDE, PROBE_SIDE, 3), np.uint8)
        parts.insert(0, Image.fromarray(values))
    renderings: list[Callable[[], RenderedPrompt]] = [
        lambda: prompts.chat([Message("user", tuple(parts))]),
        lambda: prompts.completion(PROBE_TEXT),  # a model without a chat template
    ]
    problem = ""
    for render in renderings:
        try:
            return render()
        except PromptError as error:
            problem = problem or str(error)
    raise SelfTestError(problem)
