"""Likelihoods as lm-evaluation-harness asks for them, of a real server, against transformers.

The harness itself runs in an environment of its own (``make lm-eval``: many packages, a long test);
what it sends and how it reads the answer is restated here, and tried in every run of the tests.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from saccade_server.demo import model_path
from saccade_testing.public import asking
from saccade_testing.public.asking import Asker
from saccade_testing.public.process import serve

HERE = Path(__file__).parent
HARNESS = Path(__file__).parents[3] / "build" / "lm-eval"
MODEL = "saccade-demo"
PROFILES = """
[profiles.halved]
interventions = [
    { method = "head_scale", gain = 0.5, layers = [1], rows = "prompt+generated" },
]

[profiles.answering]
interventions = [
    { method = "head_scale", gain = 0.5, layers = [1], rows = "generated" },
]
"""
GAINS = {MODEL: 1.0, f"{MODEL}+halved": 0.5}
"""Of the heads of layer 1, on all rows."""

pytestmark = pytest.mark.timeout(600)  # the first of them waits for a server

Told = tuple[float, bool]
"""A log-probability, and whether a greedy answer would have been it."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    folder = tmp_path_factory.mktemp("harness")
    profiles = folder / "profiles.toml"
    profiles.write_text(PROFILES)
    yield from serve(folder / "log", "--profiles", str(profiles))


def questions() -> list[tuple[str, str]]:
    """Every context of the task with every choice behind it, as the harness joins them."""
    lines = (HERE / "saccade_words.jsonl").read_text().splitlines()
    docs = [json.loads(line) for line in lines]
    return [(doc["text"], f" {choice}") for doc in docs for choice in doc["choices"]]


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(model_path())


@cache
def model() -> Any:
    return LlavaForConditionalGeneration.from_pretrained(model_path(), dtype=torch.float32).eval()


@contextmanager
def gained(gain: float) -> Iterator[Any]:
    """The demo model with the outputs of layer 1's heads multiplied, before they are projected."""
    found = model()
    projection = found.model.language_model.layers[1].self_attn.o_proj
    hook = projection.register_forward_pre_hook(lambda _, inputs: (inputs[0] * gain,))
    try:
        yield found
    finally:
        hook.remove()


def encoded(context: str, continuation: str) -> tuple[list[int], int]:
    """Tokens of both together, and how many the context has alone; no BOS, as the harness."""
    whole = tokenizer().encode(context + continuation, add_special_tokens=False)
    return whole, len(tokenizer().encode(context, add_special_tokens=False))


def by_transformers(context: str, continuation: str, gain: float) -> Told:
    tokens, start = encoded(context, continuation)
    with gained(gain) as edited, torch.inference_mode():
        logits = edited(input_ids=torch.tensor([tokens])).logits[0].double()
    logs = logits.log_softmax(-1)[start - 1 : -1]
    own = logs.gather(-1, torch.tensor(tokens[start:])[:, None]).squeeze(-1)
    return float(own.sum()), bool((logs.argmax(-1) == torch.tensor(tokens[start:])).all())


def as_harness(answer: dict[str, Any], lengths: list[int]) -> list[Told]:
    """What the harness makes of an answer; the last token is the one it had to ask for."""
    told = []
    for choice, start in zip(answer["choices"], lengths, strict=True):
        logprobs = choice["logprobs"]["token_logprobs"][start:-1]
        tops = choice["logprobs"]["top_logprobs"][start:-1]
        greedy = all(own == max(top.values()) for own, top in zip(logprobs, tops, strict=True))
        told.append((sum(logprobs), greedy))
    return told


def check(found: list[Told], gain: float) -> None:
    wanted = [by_transformers(*pair, gain) for pair in questions()]
    assert [logprob for logprob, _ in found] == pytest.approx(
        [logprob for logprob, _ in wanted], abs=2e-3
    )
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]


@pytest.mark.parametrize("length", [1, 0])
@pytest.mark.parametrize("name", GAINS)
def test_an_echo_is_what_transformers_says(server: Asker, name: str, length: int) -> None:
    pairs = [encoded(*pair) for pair in questions()]
    fields = {"temperature": 0, "logprobs": 1, "seed": 1234, "echo": True}
    sent = {"model": name, "prompt": [tokens for tokens, _ in pairs], "max_tokens": length}
    answer = asking.answered(server.http.post("/v1/completions", json=sent | fields))
    if not length:  # then there is none to throw away
        for choice in answer["choices"]:
            for told in choice["logprobs"].values():
                told.append(None)
    check(as_harness(answer, [start for _, start in pairs]), GAINS[name])


@pytest.mark.parametrize("name", GAINS)
def test_so_is_a_score(server: Asker, name: str) -> None:
    """The same boundaries between context and continuation."""
    found = []
    for context, continuation in questions():
        body = {
            "model": name,
            "prompt": context,
            "continuations": [continuation],
            "add_special_tokens": False,
        }
        (score,) = asking.answered(server.http.post("/v1/score", json=body))["scores"]
        tokens, start = encoded(context, continuation)
        assert score["token_ids"] == tokens[start:]
        found.append((score["logprob"], score["is_greedy"]))
    check(found, GAINS[name])


def test_a_profile_that_could_not_show_is_refused(server: Asker) -> None:
    """A harness would take the plain model's likelihoods for its own."""
    sent = {"model": f"{MODEL}+answering", "prompt": [[11, 12, 13]], "max_tokens": 1}
    refused = server.http.post("/v1/completions", json=sent | {"echo": True, "logprobs": 1})
    asking.refused(refused, "interventions[0]", "intervention_invalid_params", says="/v1/score")


@pytest.mark.long
@pytest.mark.skipif(not HARNESS.exists(), reason="make lm-eval installs the harness")
@pytest.mark.parametrize("name", GAINS)
def test_the_harness_runs_unchanged(server: Asker, tmp_path: Path, name: str) -> None:
    options = {
        "model": name,
        "base_url": f"{server.url}/v1/completions",
        "tokenizer": model_path(),
        "tokenizer_backend": "huggingface",
        "num_concurrent": 2,
    }
    # What it loads and keeps stays here, and it reaches no other machine.
    ways = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [
        *(str(HARNESS / "bin" / "lm_eval"), "run", "--model", "local-completions"),
        *("--model_args", ",".join(f"{key}={value}" for key, value in options.items())),
        *("--tasks", "saccade_words", "--include_path", str(HERE)),
        *("--output_path", str(tmp_path / "out"), "--log_samples"),
    ]
    run = subprocess.run(command, cwd=HERE, env=own | ways, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    (log,) = (tmp_path / "out").rglob("samples_*.jsonl")
    samples = sorted(map(json.loads, log.read_text().splitlines()), key=lambda one: one["doc_id"])
    found = [
        (float(logprob), greedy == "True")
        for sample in samples
        for ((logprob, greedy),) in sample["resps"]
    ]
    check(found, GAINS[name])
