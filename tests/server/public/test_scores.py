"""Scores of answers: what an answer was drawn with, under every kind of method."""

import pytest

from saccade_server.demo import sample_path
from saccade_testing.public import asking
from saccade_testing.public.asking import Asker
from saccade_testing.public.pictures import data_url

METHODS = {
    "plain": [],
    "pai": [{"method": "pai", "alpha": 0.5}],
    "var": [{"method": "var", "move_fraction": 0.6}],
    "vcd": [{"method": "vcd"}],
    "m3id": [{"method": "m3id"}],
    "dola": [{"method": "dola", "layers": "low"}],
    "vhr": [{"method": "vhr", "gain": 2.0}],
    "adaptvis": [{"method": "adaptvis"}],
    "locore": [{"method": "locore", "beta": 2.0}],
    "act": [{"method": "act", "heads": {"1": [0, 1]}, "beta": 0.4}],
    "gain": [{"method": "head_scale", "gain": 0.7, "layers": [2], "rows": "generated"}],
    "var + pai contrast": [{"method": "var"}, {"method": "pai_contrast"}],
}


@pytest.fixture(scope="module")
def messages() -> list[dict[str, object]]:
    image = {
        "type": "image_url",
        "image_url": {"url": data_url(sample_path("clear-1").read_bytes())},
    }
    return [{"role": "user", "content": [image, {"type": "text", "text": "Describe the image."}]}]


def score(demo: Asker, **fields: object) -> dict:
    body = {"model": demo.card["id"]} | fields
    return asking.answered(demo.http.post("/v1/score", json=body))


@pytest.mark.parametrize("name", METHODS)
def test_an_answer_has_the_log_probabilities_that_it_was_drawn_with(demo, messages, name):
    """Token for token; beside another continuation, which finds the prompt computed."""
    entries = METHODS[name]
    said = asking.answered(
        demo.chat(*messages, interventions=entries, logprobs=True, top_logprobs=1, max_tokens=12)
    )
    (choice,) = said["choices"]
    wanted = choice["logprobs"]["content"]
    text = choice["message"]["content"]
    fields = {"messages": messages, "interventions": entries}
    body = score(demo, **fields, continuations=[text, " Yes"])
    first, second = body["scores"]
    assert first["tokens"] == [entry["token"] for entry in wanted]
    logprobs = [entry["logprob"] for entry in wanted]
    assert first["token_logprobs"] == pytest.approx(logprobs, abs=2e-4)
    assert first["logprob"] == pytest.approx(sum(logprobs), abs=1e-3)
    assert first["is_greedy"], "the answer was greedy"
    assert not second["is_greedy"]
    for before, now in zip(
        said.get("interventions_applied", []),
        score(demo, **fields, continuations=[text]).get("interventions_applied", []),
        strict=True,
    ):
        assert now["status"] in (before["status"], "cached")
        # Its end token, if the answer had one, was drawn from a row more.
        ended = choice["finish_reason"] == "stop"
        assert now["rows"]["generated"] == max(before["rows"]["generated"] - ended, 0)


def test_a_prompt_is_computed_once_for_all_continuations(demo, messages):
    texts = [" Yes", " No", " There is a red circle."]
    question = {"role": "user", "content": "Of what colour is the circle? Say it in a word."}
    talk = [*messages, {"role": "assistant", "content": "There is one circle."}, question]
    body = score(demo, messages=talk, continuations=texts)
    counts = [one["token_count"] for one in body["scores"]]
    usage = body["usage"]
    length = (usage["prompt_tokens"] - sum(counts)) // 3
    pages = (length - 1) // 64 * 64
    assert pages
    assert usage["prompt_tokens_details"]["cached_tokens"] in (2 * pages, 3 * pages)
    alone = [score(demo, messages=talk, continuations=[text])["scores"][0] for text in texts]
    for one, other in zip(body["scores"], alone, strict=True):
        assert one["token_logprobs"] == pytest.approx(other["token_logprobs"], abs=1e-4)
