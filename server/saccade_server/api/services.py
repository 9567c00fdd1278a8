"""What the routes work with, made once for the application."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from saccade_interventions import suggest
from saccade_interventions.base import Intervention
from saccade_interventions.errors import Code, InterventionError, brief
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.registry import Registry
from saccade_server.api.access.keys import KeyRing, caller
from saccade_server.api.access.rates import Rates
from saccade_server.api.artifact_store import ArtifactStore
from saccade_server.api.backlog import Backlog
from saccade_server.api.body.noeffect import IgnoredLog
from saccade_server.api.deployment import Membership, deployment_of
from saccade_server.api.errors import NotFound
from saccade_server.api.expected import Expected
from saccade_server.api.fair_threads import FairThreads
from saccade_server.api.grammar_work import GrammarWork
from saccade_server.api.images.fetch import ImageFetcher
from saccade_server.api.images.image_work import ImageWorkers
from saccade_server.api.lifecycle import Lifecycle
from saccade_server.api.metrics.tally import RequestTally
from saccade_server.api.served_profiles import ServedProfiles
from saccade_server.api.settings import ApiSettings
from saccade_server.api.spans.spans import Spans
from saccade_server.api.traces.work import TraceWork
from saccade_server.engine.client import EngineClient
from saccade_server.models.prompt import PromptProcessor
from saccade_server.requests.conflicts import find_conflicts
from saccade_server.requests.errors import RequestError
from saccade_server.requests.facts import facts_of
from saccade_server.requests.limits import room
from saccade_server.requests.profiles import Profile, ProfileError, check_default, worded
from saccade_server.requests.rehearsal import check_for_some_prompt

Result = TypeVar("Result")


@dataclass(frozen=True)
class Services:
    """The engine and everything that stands before it.

    ``faults`` says of methods that failed their self-test why, ``tested`` has those that passed;
    ``noops`` counts the interventions
    of finished requests that should have run and did not, by method.
    """

    engine: EngineClient
    prompts: PromptProcessor
    registry: Registry
    settings: ApiSettings
    fetcher: ImageFetcher
    profiles: ServedProfiles = field(default_factory=lambda: ServedProfiles({}))
    faults: Mapping[str, str] = field(default_factory=dict)
    tested: frozenset[str] = frozenset()
    noops: Counter[str] = field(default_factory=Counter)
    ignored: IgnoredLog = field(default_factory=IgnoredLog)
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    keys: KeyRing = field(init=False)
    backlog: Backlog = field(init=False)
    rates: Rates = field(default_factory=Rates)
    workers: FairThreads = field(init=False)
    images: ImageWorkers = field(init=False)
    artifacts: ArtifactStore = field(init=False)
    traces: TraceWork = field(init=False)
    tally: RequestTally = field(init=False)
    grammars: GrammarWork = field(init=False)
    membership: Membership = field(init=False)
    spans: Spans = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", KeyRing(self.settings.all_keys))
        object.__setattr__(self, "backlog", Backlog(self.engine.info))
        # Not asyncio's own pool: whatever else runs there would wait behind prompts.
        workers = FairThreads(self.settings.prompt_workers, "saccade-prompt")
        object.__setattr__(self, "workers", workers)
        object.__setattr__(self, "images", ImageWorkers(self.settings, self.prompts))
        store = ArtifactStore(self.settings.artifacts, self.settings.max_artifacts_bytes)
        object.__setattr__(self, "artifacts", store)
        object.__setattr__(self, "traces", TraceWork(self.settings, self.prompts))
        object.__setattr__(self, "tally", RequestTally(self.engine.info.max_model_len))
        grammars = GrammarWork(self.settings.grammar_workers, self.tally)
        object.__setattr__(self, "grammars", grammars)
        object.__setattr__(self, "membership", Membership(self))
        object.__setattr__(self, "spans", Spans.of(self.settings))

    async def in_worker(self, work: Callable[[], Result]) -> Result:
        """Run CPU work other than images off the event loop, a bounded number at a time.

        A thread cannot be stopped: when the client leaves, work that has begun goes on and keeps
        its worker. Otherwise clients that leave at once could start any number of them. Callers
        with different keys take turns.
        """
        return await asyncio.wrap_future(self.workers.submit(caller.get().name, work))

    def close(self) -> None:
        """End what is still being generated, and the threads once they are idle."""
        self.lifecycle.stop()
        self.workers.shutdown()
        self.images.close()
        self.fetcher.close()
        self.artifacts.close()
        self.traces.close()
        self.grammars.close()
        self.spans.close()

    def check_model(self, name: str | None) -> str | None:
        """Refuse any name but the served one and its aliases ``<model>+<profile>``.

        No name means the only model there is. Returns the profile that an alias names.
        """
        served = self.settings.served_model_name
        if name in (None, served):
            return None
        profile = str(name).removeprefix(f"{served}+")
        if profile == name or profile not in self.profiles:
            names = [served, *(f"{served}+{profile}" for profile in self.profiles)]
            hint = suggest.hint(str(name), names, "GET /v1/models lists what is.")
            message = f"The model {brief(name)} is not served here; {hint}"
            raise NotFound(message, code="model_not_found", param="model")
        return profile

    def parse(self, value: object) -> tuple[Intervention, ...]:
        """The methods and parameters of a request's list of interventions.

        Raises:
            InterventionError: the first thing wrong with it.
        """
        interventions = self.registry.parse(value)
        self.check_tested(interventions)
        return interventions

    def check_tested(self, interventions: Sequence[Intervention]) -> None:
        """Refuse methods that did not pass their self-test.

        Raises:
            InterventionError: one of them did not; the message says why.
        """
        for index, item in enumerate(interventions):
            reason = self.faults.get(item.method_id())
            if reason is not None:
                message = f"{item.method_id()} did not pass its self-test on this model: {reason}"
                param = f"interventions[{index}].method"
                raise InterventionError(Code.UNSUPPORTED_MODEL, message, param)

    def listing(self) -> list[dict[str, Any]]:
        """One line a method; those that failed their self-test are not supported.

        The first call finds the conflicts, which takes a while: use it in a worker.
        """
        lines = self.registry.listing(self.facts)
        for line in lines:
            line["conflicts_with"] = self.conflicts[line["id"]]
            line["tested"] = line["id"] in self.tested
            reason = self.faults.get(line["id"])
            if reason is not None and line["supported"]:
                line |= {"supported": False, "reason": f"it did not pass its self-test: {reason}"}
        return lines

    @cached_property
    def conflicts(self) -> dict[str, list[str]]:
        """The methods that each method excludes."""
        return find_conflicts(self.registry, self.facts)

    def rehearse(self, interventions: Sequence[Intervention]) -> tuple[Intervention, ...]:
        """Refuse what no prompt could run, resolve the rest; reads artifacts: use it in a worker.

        Raises:
            InterventionError, RequestError: as a request would get it.
        """
        info, artifacts = self.engine.info, self.artifacts.get
        return check_for_some_prompt(interventions, self.facts, info, artifacts)

    def check_profiles(self, profiles: Mapping[str, Profile]) -> None:
        """Refuse profiles that the served model cannot run on any prompt; reads artifacts.

        Raises:
            ProfileError: names the profile and what is wrong with it, or the default is not there.
        """
        check_default(self.profiles.default, profiles)
        for profile in profiles.values():
            try:
                self.check_tested(profile.interventions)
                self.rehearse(profile.interventions)
            except (InterventionError, RequestError) as error:
                message = worded(profile.name, profile.entries, error)
                raise ProfileError(f"{profile.place}: {message}") from None

    def check_deployment(self, profiles: Mapping[str, Profile]) -> None:
        """Refuse to be, with these profiles, what the operator does not expect.

        What is expected is read again each time: it may be a file that moves with the profiles.

        Raises:
            DeploymentError: says what differs.
            OSError: the folder of artifacts cannot be read or written.
        """
        found = deployment_of(self, profiles)
        if self.settings.expected_deployment is not None:
            Expected.read(self.settings.expected_deployment).check(found)

    @property
    def room(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return room(self.engine.info)

    @property
    def facts(self) -> ModelFacts:
        """What interventions may know of the model."""
        return facts_of(self.engine.info, self.prompts.special_token_ids)
