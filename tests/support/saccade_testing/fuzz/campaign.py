"""One server under schemathesis: examples and boundaries of its document, random data, valid and
not, and chains of requests; each answer is judged, and each time the next request must be served.
"""

import collections
import hashlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import schemathesis
from schemathesis import config
from schemathesis.engine import events, from_schema

from saccade_testing.api.documented import Document
from saccade_testing.fuzz.document import Digests, deepened
from saccade_testing.fuzz.files import some_artifacts
from saccade_testing.fuzz.reasons import reason

SECONDS = 30.0
"""After which an answer counts as one that never came."""
PHASES = ("examples", "coverage", "fuzzing", "stateful")


@dataclass
class Outcome:
    """What was sent, by phase, kind and status; and what was wrong, each sentence with a count.

    ``answered`` are requests with a 2xx, by operation; ``reasons`` why valid ones were refused.
    """

    sent: collections.Counter[str] = field(default_factory=collections.Counter)
    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    answered: collections.Counter[str] = field(default_factory=collections.Counter)
    problems: collections.Counter[str] = field(default_factory=collections.Counter)
    samples: dict[str, str] = field(default_factory=dict)
    reasons: collections.Counter[str] = field(default_factory=collections.Counter)
    seconds: float = 0.0

    @property
    def total(self) -> int:
        return sum(self.sent.values())

    def blame(self, problem: str, sample: str) -> None:
        self.problems[problem] += 1
        self.samples.setdefault(problem, sample[:4000])


@dataclass(frozen=True)
class Campaign:
    """A server and its documents: ``told`` is its own, ``deep`` is what requests are made of."""

    client: httpx2.Client
    told: dict[str, Any]
    deep: dict[str, Any]
    headers: dict[str, str]
    probe: dict[str, Any]
    """A chat that is always answered in the same way."""

    @classmethod
    def of(
        cls, client: httpx2.Client, headers: dict[str, str], probe: dict[str, Any]
    ) -> "Campaign":
        """With what the server says of itself; requests get ``headers``."""
        listed = client.get("/v1/interventions").json()["data"]
        offered = [each["id"] for each in listed if each["supported"]]
        methods = [client.get(f"/v1/interventions/{name}").json() for name in offered]
        told = client.get("/openapi.json").json()
        model = client.get("/v1/models").json()["data"][0]
        digests = Digests(kept_artifacts(client, model), kept_trace(client))
        deep = deepened(told, methods, model["id"], tokens_of(client), digests)
        return cls(client, told, deep, headers, probe)

    def run(self, seed: int, examples: int, phases: tuple[str, ...] = PHASES) -> Outcome:
        """Ask; ``examples`` random requests of each operation and kind, the others as they are."""
        outcome = Outcome()
        document = Document(self.told)
        expected = self._probed()
        began = time.monotonic()
        schema = schemathesis.openapi.from_dict(
            self.deep, config=self._settings(seed, examples, phases)
        )
        for event in from_schema(schema).execute():
            if isinstance(event, events.NonFatalError):
                outcome.blame(f"{event.label}: {type(event.value).__name__}", str(event.value))
            elif isinstance(event, events.FatalError):
                raise event.exception
            elif isinstance(event, events.ScenarioFinished):
                self._judge(event, document, outcome)
                if self._probed() != expected:
                    outcome.blame(f"{event.label}: the next request is answered otherwise", "")
        outcome.seconds = time.monotonic() - began
        return outcome

    def _probed(self) -> object:
        answer = self.client.post("/v1/chat/completions", json=self.probe)
        return answer.status_code, answer.json().get("choices")

    def _settings(self, seed: int, examples: int, phases: tuple[str, ...]) -> Any:
        generation = config.GenerationConfig(
            max_examples=examples, no_shrink=True, codec=None, allow_x00=True, database="none"
        )
        rejection = config._checks.NegativeDataRejectionConfig(expected_statuses=["4xx", "503"])
        checks = config.ChecksConfig(negative_data_rejection=rejection)
        checks.update(included_check_names=["negative_data_rejection"])
        chosen = config.PhasesConfig()
        for phase in PHASES:
            chosen.get_by_name(name=phase).enabled = phase in phases
        project = config.ProjectConfig(
            base_url=str(self.client.base_url),
            headers=self.headers,
            request_timeout=SECONDS,
            max_stream_events=10**6,
            continue_on_failure=True,
            generation=generation,
            checks=checks,
            phases=chosen,
        )
        output = config.OutputConfig(
            sanitization=config.SanitizationConfig(enabled=False),
            truncation=config.TruncationConfig(max_recorded_payload_size=0),
        )
        projects = config.ProjectsConfig(default=project)
        return config.SchemathesisConfig(seed=seed, output=output, projects=projects)

    def _judge(self, event: events.ScenarioFinished, document: Document, outcome: Outcome) -> None:
        recorder = event.recorder
        for name, node in recorder.cases.items():
            case = node.value
            mode = case.meta.generation.mode.value if case.meta else "derived"
            outcome.sent[f"{event.phase.value}, {mode}"] += 1
            interaction = recorder.interactions.get(name)
            if interaction is None or interaction.response is None:
                outcome.blame(f"{case.operation.label}: no answer within {SECONDS:g} s", repr(case))
                continue
            answer = interaction.response
            outcome.statuses[f"{mode}: {answer.status_code}"] += 1
            outcome.answered[case.operation.label] += answer.status_code < 300
            asked = f"{interaction.request.method} {interaction.request.uri}"
            sample = f"{asked}\n{case!r}\n{(answer.content or b'')[:500]!r}"
            for problem in judged(case, mode, answer, document, outcome):
                outcome.blame(problem, sample)
            for check in recorder.checks.get(name, ()):
                if check.failure_info is not None:
                    failure = check.failure_info.failure
                    about = failure.message.partition("Invalid component: ")[2]
                    outcome.blame(f"{case.operation.label}: accepted: {about}", sample)


def kept_artifacts(client: httpx2.Client, model: dict[str, Any]) -> list[str]:
    """Upload one artifact of several kinds, made for the model; their digests."""
    found = []
    for data in some_artifacts(model["fingerprint"], model["hidden_size"], model["head_dim"]):
        digest = hashlib.sha256(data).hexdigest()
        kept = client.put(f"/v1/artifacts/{digest}", content=data)
        if kept.status_code not in (200, 201):
            raise AssertionError(kept.text)
        found.append(digest)
    return found


def kept_trace(client: httpx2.Client) -> str:
    """Have a trace kept; its digest."""
    asked = {"prompt": "Hi", "max_tokens": 1, "trace": {"entropy": True, "delivery": "link"}}
    answer = client.post("/v1/completions", json=asked).json()
    return str(answer["choices"][0]["trace"]["link"]).rpartition("/")[2]


def tokens_of(client: httpx2.Client) -> int:
    """How many tokens there are: the refusal of one that there cannot be says it."""
    refused = client.post("/detokenize", json={"tokens": [2**31 - 1]}).json()
    return int(refused["error"]["message"].rstrip(".").split()[-1]) + 1


def judged(
    case: Any, mode: str, answer: Any, document: Document, outcome: Outcome
) -> Iterator[str]:
    """What is wrong with an answer."""
    status, label = answer.status_code, case.operation.label
    body = answer.content or b""
    media = (answer.headers.get("content-type") or [""])[0].partition(";")[0]
    path = re.sub(r"^https?://[^/]+", "", answer.request.url).partition("?")[0]
    if status >= 500 and status != 503:
        yield f"{label}: {status}"
    try:
        yield from document.problems(case.method, path, status, media, body)
    except ValueError as error:
        yield f"{label}: {status}: the body cannot be read: {error}"
    if status == 405:
        named = set((answer.headers.get("allow") or [""])[0].split(", "))
        offered = {method.upper() for method in document.document["paths"][case.path]}
        if not offered <= named:
            yield f"{label}: Allow lacks {offered - named}"
    if mode == "positive" and status == 400:
        refusal = json.loads(body)["error"]
        why = reason(refusal["code"], refusal["message"])
        if why is None:
            said = f"{refusal['code']}: {refusal['message']}"
            yield f"{label}: refused without a reason that the document could not say: {said}"
        else:
            outcome.reasons[why] += 1
