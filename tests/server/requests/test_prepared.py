"""From a prompt and interventions to the engine's request, without a server."""

from typing import Any

import numpy as np
import pytest

from saccade_interventions.artifacts import artifact_id, read_artifact, write_artifact
from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context, Prompt
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.registry import Registry
from saccade_server.engine.limits import why_refused
from saccade_server.engine.request import Array, ImageInput, SamplingParams
from saccade_server.models.prompt import PreparedImage, RenderedPrompt
from saccade_server.requests.facts import facts_of
from saccade_server.requests.prepared import described, prepare, under
from saccade_testing.api.fakes import INFO

REGISTRY = Registry.discover()
FACTS = facts_of(INFO, special_tokens=(257, 256))
SAMPLING = SamplingParams(max_tokens=3)
PIXELS = np.arange(48, dtype=np.float32).reshape(3, 4, 4)
VIEWS = (
    PreparedImage("a", 3, 1, PIXELS, None, before=1, image=0),
    PreparedImage("b", 5, 2, PIXELS, None, before=1, image=0),
)
PROMPT = RenderedPrompt(tuple(range(12)), "?" * 12, tuple((at, at + 1) for at in range(12)), VIEWS)


def test_facts_are_the_engine_s_and_the_tokenizer_s() -> None:
    assert FACTS.special_tokens == (256, 257)
    names = ("layers", "heads", "kv_heads", "head_dim", "hidden_size", "sink_dims")
    for name in (*names, "accepts_images", "fingerprint"):
        assert getattr(FACTS, name) == getattr(INFO, name)


def test_a_rendered_prompt_in_the_words_of_methods() -> None:
    assert described(PROMPT) == Prompt(12, ((3, 4), (5, 7)), PROMPT.text, PROMPT.offsets, (0, 0))


def test_without_interventions() -> None:
    prepared = prepare(PROMPT, (), FACTS)
    assert (prepared.plan, prepared.branches, prepared.interventions) == (None, (), ())
    request = prepared.request("r", SAMPLING)
    assert (request.request_id, request.tokens, request.sampling) == ("r", PROMPT.tokens, SAMPLING)
    assert request.images == tuple(
        ImageInput(view.digest, view.start, view.length, Array.pack(PIXELS)) for view in VIEWS
    )
    assert request.cache_salt == ""


@pytest.mark.parametrize("entry", [{"method": "pai"}, {"method": "vcd"}, {"method": "vhr"}])
def test_the_request_has_what_its_plan_asks_for(entry: dict[str, Any]) -> None:
    interventions = REGISTRY.parse([entry])
    prepared = prepare(PROMPT, interventions, FACTS)
    assert prepared.plan == compile_plan(interventions, Context(FACTS, described(PROMPT)))
    assert prepared.interventions == interventions
    request = prepared.request("r", SAMPLING, cache_salt="own")
    assert len(request.branches) == len(prepared.plan.needs.branches) == (entry["method"] != "pai")
    assert (request.plan, request.cache_salt) == (prepared.plan, "own")
    assert why_refused(request, INFO) is None
    assert under(prepared.plan, PROMPT).request("r", SAMPLING, "own") == request


def test_neutral_strengths_leave_the_plain_request() -> None:
    neutral = prepare(PROMPT, REGISTRY.parse([{"method": "vcd", "alpha": 0}]), FACTS)
    assert neutral.request("r", SAMPLING) == prepare(PROMPT, (), FACTS).request("r", SAMPLING)


def test_artifacts_are_found_and_fill_in_what_was_left_out() -> None:
    vectors = np.ones((1, INFO.hidden_size), np.float32)
    tensors = {"vectors": vectors, "layers": np.array([1], np.int32)}
    data = write_artifact("vectors", INFO.fingerprint, tensors, defaults={"coefficient": 0.5})
    entry = {"method": "steering", "artifact": artifact_id(data)}
    interventions = REGISTRY.parse([entry])
    with pytest.raises(InterventionError) as caught:
        prepare(PROMPT, interventions, FACTS)
    assert caught.value.code is Code.ARTIFACT_NOT_FOUND
    (ran,) = prepare(
        PROMPT, interventions, FACTS, {entry["artifact"]: read_artifact(data)}.get
    ).interventions
    assert ran.normalised()["coefficient"] == 0.5


def test_nothing_is_left_in_a_branch() -> None:
    alone = PreparedImage("a", 0, 4, PIXELS, None)
    prompt = RenderedPrompt((1, 1, 1, 1), "", (), (alone,))
    with pytest.raises(InterventionError) as caught:
        prepare(prompt, REGISTRY.parse([{"method": "pai_contrast"}]), FACTS)
    assert (caught.value.code, caught.value.param) == (Code.TARGET_NOT_FOUND, "interventions[0]")
