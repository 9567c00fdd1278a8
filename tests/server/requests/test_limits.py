"""What a server has room for, and in which words it refuses the rest. No server, no engine."""

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.registry import Registry
from saccade_server.engine.limits import why_group_refused, why_refused
from saccade_server.engine.request import BranchInput, EngineInfo, SamplingParams
from saccade_server.models.prompt import PreparedImage, RenderedPrompt
from saccade_server.requests.errors import RequestError
from saccade_server.requests.facts import facts_of
from saccade_server.requests.limits import (
    answer_length,
    check_group,
    check_length,
    check_min_tokens,
    check_one_step,
    room,
    room_for_all,
)
from saccade_server.requests.prepared import Prepared, prepare
from saccade_testing.api.fakes import INFO as SERVED

INFO = replace(SERVED, max_model_len=500, cache_tokens=640)
REGISTRY = Registry.discover()
ACT = {"method": "act", "heads": {"1": [0]}}
PAI = {"method": "pai"}


def prepared(*entries: Any, length: int = 12, info: EngineInfo = INFO) -> Prepared:
    """Interventions for a prompt with an image at its tokens 2 to 7."""
    image = PreparedImage("a", 2, 6, np.zeros((3, 4, 4), np.float32), None)
    prompt = RenderedPrompt(tuple(range(length)), "", (), (image,))
    return prepare(prompt, REGISTRY.parse(list(entries)), facts_of(info))


def test_room() -> None:
    assert room(INFO) == 500
    assert room(replace(INFO, cache_tokens=128)) == 128


def test_room_for_all() -> None:
    assert room_for_all(100, (), INFO) == 400
    growing, passing = BranchInput(tokens=(1,) * 90), BranchInput(tokens=(1,) * 90, measures=True)
    # Two of eight pages are the measuring branch's, the others for the prompt and its answer.
    tight = replace(INFO, cache_tokens=512)
    assert room_for_all(100, (passing,), tight) == 6 * 64 - 100
    assert room_for_all(100, (growing,), INFO) == 5 * 64 - 100
    assert room_for_all(400, (growing, growing), INFO) == 0
    assert room_for_all(480, (growing, growing), INFO) < 0


@pytest.mark.parametrize("entries", [(), ({"method": "vcd"},), ({"method": "vhr"},)])
@pytest.mark.parametrize("cache_tokens", [128, 256, 320, 640])
def test_the_longest_answer_is_the_longest_that_the_engine_takes(
    entries: Any, cache_tokens: int
) -> None:
    info = replace(INFO, cache_tokens=cache_tokens)
    asked = prepared(*entries, length=70, info=info)
    most = answer_length(asked, None, info, "max_tokens")

    def refused(tokens: int) -> bool:
        return why_refused(asked.request("r", SamplingParams(max_tokens=tokens)), info) is not None

    assert most >= 1
    assert refused(most + 1)
    assert not refused(most) or most == 1


def test_more_than_there_is_room_for() -> None:
    assert answer_length(prepared(), 488, INFO, "max_tokens") == 488
    with pytest.raises(RequestError, match=r"12 tokens and 489 more.*may be 500") as caught:
        answer_length(prepared(), 489, INFO, "max_tokens")
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "max_tokens")


def test_a_prompt_without_room_for_an_answer() -> None:
    check_length(499, INFO, "prompt")
    with pytest.raises(
        RequestError, match=r"500 tokens; with its answer it may have 500"
    ) as caught:
        check_length(500, INFO, "prompt[1]")
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt[1]")


def test_min_tokens() -> None:
    check_min_tokens(SamplingParams(max_tokens=3, min_tokens=3), INFO)
    with pytest.raises(RequestError, match=r"max_tokens, which is 3") as caught:
        check_min_tokens(SamplingParams(max_tokens=3, min_tokens=4), INFO)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "min_tokens")


def test_a_group_that_is_too_large() -> None:
    request = prepared({"method": "vcd"}).request("r", SamplingParams(max_tokens=1))
    check_group(request, INFO)
    with pytest.raises(RequestError, match=r"^The request runs as 2 sequences .* 1\.$") as caught:
        check_group(request, replace(INFO, max_num_seqs=1))
    assert (caught.value.code, caught.value.param) == ("request_too_large", "interventions")


ONE_STEP = {
    "act": ((ACT,), 12, 0),
    "act behind another": ((PAI, ACT), 12, 1),
    "vhr": (({"method": "vhr"},), 12 + 6, 0),
    "vhr on questions": ((PAI, {"method": "vhr", "rows": "question"}), 12 + 6, 1),
    "vhr with hidden images": (({"method": "vhr", "without_image": "hidden"},), 2 * 12, 0),
    "act with a branch": ((ACT, {"method": "pai_contrast"}), 12 + 6, 0),
}


@pytest.mark.parametrize("case", ONE_STEP)
def test_a_prompt_too_long_for_one_step(case: str) -> None:
    """The same from either side: as a request is told, and as the engine would refuse it."""
    entries, tokens, at = ONE_STEP[case]
    asked = prepared(*entries)
    request = asked.request("r", SamplingParams(max_tokens=1))
    enough = replace(INFO, max_batched_tokens=tokens)
    check_one_step(asked, enough)
    assert why_group_refused(request, enough) is None
    short = replace(INFO, max_batched_tokens=tokens - 1)
    assert "in one step" in str(why_group_refused(request, short))
    with pytest.raises(InterventionError) as caught:
        check_one_step(asked, short)
    assert (caught.value.code, caught.value.param) == (
        Code.INVALID_PARAMS,
        f"interventions[{at}]",
    )
    method = entries[at]["method"]
    assert str(caught.value).startswith(f"{method} needs the whole prompt prefilled in one step")
    assert f" {tokens} tokens" in str(caught.value)
    assert f"computes {tokens - 1} tokens a step (max_batched_tokens)" in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        PAI,
        {"method": "vhr", "rows": "last+generated"},
        {"method": "vhr", "gain": 1},
        {**ACT, "beta": 1},
    ],
)
def test_prompts_in_chunks_may_be_longer_than_a_step(entry: Any) -> None:
    check_one_step(prepared(entry), replace(INFO, max_batched_tokens=1))
