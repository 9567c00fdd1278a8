"""``saccade inspect``: what it lists, asks, prints and refuses, and thresholds that it finds."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from saccade_interventions.artifacts import read_artifact
from saccade_server.calibration import thresholds
from saccade_server.calibration.examples import Labelled
from saccade_server.cli import app
from saccade_server.demo import sample_path
from saccade_server.detectors.anatomy_of_a_lie import AnatomyOfALie
from saccade_server.detectors.registry import DETECTORS
from saccade_server.detectors.roc import TooFewAnswers
from saccade_server.detectors.svar import SVAR
from saccade_server.evaluation.asking import Asker
from saccade_server.evaluation.errors import SettingRefused
from saccade_server.inspection import Answered, answers, calibrated
from saccade_server.inspection_view import by_token, shown, verdict

IMAGE = str(sample_path("absent-1"))
SAMPLING = {"temperature": 0, "max_tokens": 4}
FOUND = {
    "name": "svar",
    "score": 0.25,
    "unit": "share",
    "suspect": "low",
    "threshold": None,
    "flagged": None,
    "reason": None,
    "tokens": [0.5, None, 0.125],
    "values": {},
}


def saccade(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["inspect", *arguments])


def text_of(part: Any) -> str:
    file = io.StringIO()
    Console(width=80, file=file).print(part)
    return file.getvalue()


def test_detectors_are_listed_and_described() -> None:
    listing = saccade()
    assert listing.exit_code == 0
    assert all(name in listing.stdout for name in DETECTORS)
    assert [each["id"] for each in json.loads(saccade("--json").stdout)] == list(DETECTORS)
    described = json.loads(saccade("svar").stdout)
    assert described["schema"]["properties"]["reduce"]["enum"] == ["mean", "min", "max"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("savr",), 'unknown detector "savr"; did you mean "svar"?'),
        (("svar:layer=2",), 'unknown field of svar "layer"; did you mean "layers"?'),
        (("fai:near=9,far=8",), "far: far is not below near"),
        (("svar", "--prompt", "a", "--calibrate", IMAGE), "are two commands"),
        (("svar", "--prompt", "a", "--image", "nowhere.png"), "there is no file nowhere.png"),
        (("svar", "--prompt", "a", "--model", "nowhere/"), "it is no folder here"),
        (("svar", "--prompt", "a", "--intervention", "vra"), "unknown method"),
        (("svar", "--calibrate", IMAGE), "can't decode"),
    ],
)
def test_a_command_line_that_cannot_be_done_is_refused_in_a_sentence(
    arguments: tuple[str, ...], words: str
) -> None:
    done = saccade(*arguments)
    assert done.exit_code != 0
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_answer_of_the_demo_model_is_scored() -> None:
    asked = ("--prompt", "Describe the image.", "--image", IMAGE, "--json")
    done = saccade("svar:threshold=2.5", *asked)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["answer"] == "There is a red circle, a blue square and a blue diamond."
    assert "".join(found["token_texts"]) == found["answer"]
    assert found["detector"]["flagged"] is True
    assert len(found["detector"]["tokens"]) == len(found["token_texts"])


def test_what_the_server_refuses_is_said_in_the_words_of_the_command_line() -> None:
    done = saccade("svar:layers=9|", "--prompt", "Hi", "--image", IMAGE)
    assert done.exit_code == 2
    assert done.stderr == "saccade: there is no layer 9; the model has 6, 0 to 5 (layers[0])\n"


def test_scores_are_drawn_by_token() -> None:
    lines = by_token(["A", " red", "\n"], FOUND["tokens"]).plain.split("\n")
    assert lines == ["A       0.5  " + "█" * 24, " red", r"\n    0.125  " + "█" * 6]
    assert by_token([], []).plain == ""
    assert "█" not in by_token(["a"], [0.0]).plain


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "svar 0.25 (share); no threshold is set, low is suspicious"),
        ({"threshold": 0.3, "flagged": True}, "svar 0.25 (share): flagged, below 0.3 is"),
        ({"threshold": 0.2, "flagged": False}, "svar 0.25 (share): not flagged, below 0.2 is"),
        ({"score": None, "reason": "of this"}, "svar: no score, because of this"),
    ],
)
def test_a_verdict_is_a_sentence(changed: dict[str, Any], said: str) -> None:
    assert verdict(FOUND | changed).plain == said


def test_sinks_are_shown_by_position() -> None:
    values = {
        "positions": list(range(14)),
        "phi": [1.0] * 14,
        "lifetime": [0] * 13 + [4],
        "kind": ["attention only"] * 13 + ["like BOS"],
        "sink_rate": [0.1] * 14,
    }
    parts = list(shown(FOUND | {"name": "sinks", "tokens": None, "values": values}, []))
    whole = "".join(map(text_of, parts))
    assert whole.index("like BOS") < whole.index("attention only")
    assert "and 2 more" in whole


class Server:
    """Says yes to every question; the score is low where the question holds "wrong"."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/models":
            return httpx2.Response(200, json={"data": [{"id": "m", "fingerprint": "sha256:f"}]})
        body = json.loads(request.content)
        self.asked.append(body)
        (entry,), question = body["detectors"], body["messages"][0]["content"]
        if entry.get("layers") == [9]:
            return httpx2.Response(400, json={"error": {"message": "no", "param": "detectors[0]"}})
        number = int(question.split()[-1]) / 100
        score = (-1 if "wrong" in question else 1) + number
        values = {"evidence": 0.0, "conflict": score, "decision": number}
        found = FOUND | {"score": None if "lost" in question else score, "values": values}
        choice = {
            "message": {"content": "Yes."},
            "logprobs": {"content": [{"token": "Yes."}]},
            "detectors": [found],
        }
        return httpx2.Response(200, json={"choices": [choice]})


def examples() -> list[Labelled]:
    asked = [("wrong", "No.", 40), ("right", "yes", 60), ("lost", "yes", 2)]
    return [
        Labelled("file:1", (("user", f"{word} {number}"),), (), label)
        for word, label, count in asked
        for number in range(count)
    ]


def ask(detector: Any) -> tuple[Server, Answered]:
    server = Server()

    async def work() -> Answered:
        transport = httpx2.MockTransport(server)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            asker = await Asker.connect(client, 8)
            return await answers(asker, detector, examples(), SAMPLING)

    return server, asyncio.run(work())


def test_labelled_prompts_give_scores_and_a_threshold() -> None:
    server, found = ask(SVAR(threshold=5, layers=[2]))
    assert server.asked[0]["detectors"] == [{"name": "svar", "layers": [2]}]
    assert server.asked[0]["temperature"] == 0
    assert (found.wrong.sum(), len(found.wrong)) == (40, 102)
    assert np.isnan(found.scores).sum() == 2
    made = calibrated(SVAR(), found, 0.05)
    assert made.area.value == made.found.true_positive_rate == 1
    document = thresholds.as_json(made, {"name": "svar", "threshold": 1.0}, "sha256:f")
    assert document["held_out"]["true_positive_rate"] == 1
    said = "\n".join(thresholds.sentences(document))
    assert "area under the ROC curve 1.000 [1.000, 1.000], 40 wrong and 60 right answers" in said
    assert "A request to this model (sha256:f) names it so:" in said
    assert json.loads(said.splitlines()[-1]) == {"detectors": [document["entry"]]}


def test_a_score_that_tells_nothing_is_said_to_tell_nothing() -> None:
    rng = np.random.default_rng(0)
    found = Answered(rng.normal(size=200), rng.random(200) < 0.5)
    made = calibrated(SVAR(), found, 0.05)
    document = thresholds.as_json(made, {"name": "svar"}, "")
    assert any("no better than chance" in line for line in thresholds.sentences(document))


def test_without_any_score_there_is_no_threshold() -> None:
    with pytest.raises(TooFewAnswers, match="no answer has a score"):
        calibrated(SVAR(), Answered(np.full(9, np.nan), np.zeros(9, bool)), 0.05)


def test_the_anatomy_of_a_lie_is_calibrated_by_its_three_values() -> None:
    _, found = ask(AnatomyOfALie())
    assert found.scores.shape == (102, 3)
    made = calibrated(AnatomyOfALie(), found, 0.05)
    assert made.density is not None
    assert made.area.value > 0.95


def test_what_the_server_does_not_do_is_raised() -> None:
    with pytest.raises(SettingRefused):
        ask(SVAR(layers=[9]))


def test_calibration_writes_an_artifact_and_an_entry(tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    asked = ("--questions", "companion", "--count", "90", "--seed", "1")
    exported = CliRunner().invoke(app, ["eval", "export-scenes", "--out", str(folder), *asked])
    assert exported.exit_code == 0
    out, store = tmp_path / "d.safetensors", tmp_path / "store"
    done = saccade(
        "anatomy_of_a_lie",
        *("--calibrate", str(folder / "prompts.jsonl"), "--out", str(out)),
        *("--artifacts", str(store), "--max-tokens", "4", "--json"),
    )
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    artifact = read_artifact(out.read_bytes())
    assert artifact.kind == "density"
    assert document["entry"]["artifact"] == artifact.digest
    assert document["model"] == artifact.model
    assert document["components"] == len(artifact.tensors["weights"])
    entry = (
        f"anatomy_of_a_lie:artifact={artifact.digest},threshold={document['entry']['threshold']}"
    )
    asked = ("--prompt", "Is there a red circle?", "--image", IMAGE, "--artifacts", str(store))
    scored = json.loads(saccade(entry, *asked, "--json").stdout)
    assert scored["detector"]["score"] is not None
    assert scored["detector"]["flagged"] in (True, False)
