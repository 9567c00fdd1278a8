"""Tokens of an answer that are known from the start: computed in chunks, rows of the answer still.

Forced tokens take the same places one at a time, so what follows both, and what both report, is the
same for every method that lets its tokens be given.
"""

from functools import cache
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from saccade_interventions.registry import Registry
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.limits import acts_on_draws, one_step_tokens
from saccade_server.engine.request import FinishReason, GenerateRequest
from saccade_server.requests.scores import scoring
from saccade_testing import catalogue, tiny
from saccade_testing.answers import NEAR, differences, told
from saccade_testing.crowds import served
from saccade_testing.engine import SINK_DIMS, MakeCore, Result, ask, make_request, run

GIVEN = (33, 44, 55, 44, 12, 70, 23)
MORE = 14
WAYS: dict[str, dict[str, Any]] = {
    "ordinary": {"overlap": False, "padded_decode": False},
    "as-on-a-gpu": {"overlap": True, "padded_decode": True},
    "in-small-chunks": {"max_batched_tokens": 5, "max_num_seqs": 5},
    "preempted": {"cache_tokens": 384, "max_num_seqs": 6},
}
METHODS = Registry.discover()


def core_of(family: str, **settings: Any) -> EngineCore:
    config = EngineConfig(model=family, **{"cache_tokens": 8192, "max_num_seqs": 16, **settings})
    return EngineCore(served(family), config, SINK_DIMS)


@cache
def requests(family: str) -> dict[str, GenerateRequest]:
    """By scenario: what lets the first tokens of its answer be given."""
    names = catalogue.WITHOUT_IMAGE if family == "llama" else catalogue.WITH_IMAGE
    images = int(names is catalogue.WITH_IMAGE)
    prompt = tiny.prompt(family, images=images, seed=5, text=50 if not images else 38)
    made = {}
    for name, entries in names.items():
        methods, store = METHODS.parse(list(entries)), catalogue.STORE.get
        request = ask(
            *(prompt, methods, name, len(GIVEN) + MORE),
            facts=catalogue.FACTS,
            artifacts=store,
            logprobs=2,
        )
        if not acts_on_draws(request.plan):
            made[name] = request
    return made


@cache
def forced(family: str) -> dict[str, Result]:
    """What they get where these tokens are forced."""
    samplings = {name: replace(r.sampling, forced=GIVEN) for name, r in requests(family).items()}
    asked = [replace(r, sampling=samplings[name]) for name, r in requests(family).items()]
    return run(core_of(family), asked)


def fits(request: GenerateRequest, core: EngineCore) -> bool:
    """True if the engine can compute its prompt in as many steps as its plan allows."""
    return one_step_tokens([request]) <= core.info.max_batched_tokens


def given(request: GenerateRequest) -> GenerateRequest:
    """The same answer with these tokens known from the start, which are scored."""
    known = replace(request, given=GIVEN)
    return scoring(known, len(request.tokens) - 1, GIVEN, 2)


def scores(result: Result) -> list[float]:
    """Of the given tokens, as :func:`~saccade_testing.answers.told` tells those of forced ones."""
    own, best = (result.trace[f"scores.{name}"] for name in ("logprobs", "top_logprobs"))
    return np.concatenate([own[:, None], best], 1).ravel().tolist()


def behind(result: Result) -> dict[str, Any]:
    """What was told, without the tokens that were forced."""
    said = told(result)
    if len(said["tokens"]) > MORE:
        said["tokens"] = said["tokens"][len(GIVEN) :]
        said["logprobs"] = said["logprobs"][3 * len(GIVEN) :]
    return said


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["llama", "llava"])
def test_they_are_to_every_method_what_forced_tokens_are(family: str, way: str) -> None:
    core = core_of(family, **WAYS[way])
    asked = {name: r for name, r in requests(family).items() if fits(r, core)}
    assert len(asked) > 20
    found = run(core, [given(request) for request in asked.values()])
    if way == "preempted":
        assert core.stats().preemptions
    wrong = [
        f"{name}: {difference}"
        for name in asked
        for difference in differences(behind(found[name]), behind(forced(family)[name]))
    ]
    assert not wrong, "\n".join(wrong)
    for name in asked:
        wanted = told(forced(family)[name])["logprobs"][: 3 * len(GIVEN)]
        assert scores(found[name]) == pytest.approx(wanted, abs=NEAR), name


def test_where_a_plan_acts_on_draws_they_are_refused(make_core: MakeCore) -> None:
    prompt = tiny.prompt("llava", images=1, seed=5)
    core = make_core("llava")
    for entries in ([catalogue.VCD], [catalogue.DOLA], [catalogue.SGRS], [catalogue.UNSURE]):
        methods = METHODS.parse(entries)
        request = replace(ask(prompt, methods, facts=catalogue.FACTS), given=GIVEN)
        refused = core.submit(request)
        assert refused is not None
        assert refused.error == "the plan acts where tokens are drawn, and the answer's first " + (
            "tokens are not"
        )


def test_fewer_tokens_than_are_given_and_unknown_ones_are_refused(make_core: MakeCore) -> None:
    prompt, core = tiny.prompt("llama", images=0, seed=3), make_core("llama")
    for given, most, reason in (
        ((3, 4), 1, "max_tokens must be at least 2"),
        ((), -1, "max_tokens must be at least 0"),
        ((97,), 1, "a token is not in the vocabulary"),
    ):
        refused = core.submit(replace(make_request(prompt, "r", max_tokens=most), given=given))
        assert refused is not None
        assert refused.error == reason


@pytest.mark.parametrize("given", [(), GIVEN])
def test_an_answer_that_is_complete_draws_nothing(
    given: tuple[int, ...], make_core: MakeCore
) -> None:
    """It ends once its rows have run, whatever ends answers, beside one that goes on."""
    prompt, core = tiny.prompt("llama", images=0, seed=3), make_core("llama")
    neighbour = make_request(prompt, "n", max_tokens=6)
    alone = run(core, [neighbour])["n"].tokens
    steered = METHODS.parse([catalogue.STEER])
    facts: dict[str, Any] = {"facts": catalogue.FACTS, "artifacts": catalogue.STORE.get}
    request = replace(ask(prompt, steered, "r", len(given), **facts), given=given)
    found = run(core, [neighbour, request])
    assert found["n"].tokens == alone
    last = found["r"].last
    assert (found["r"].tokens, last.finish_reason) == ([], FinishReason.LENGTH)
    assert last.receipt.rows["last"] == 1
    assert last.receipt.rows.get("generated", 0) == len(given)
    assert core.stats().generated_tokens == 2 * len(alone)
