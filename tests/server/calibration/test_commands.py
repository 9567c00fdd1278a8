"""``saccade calibrate`` end to end on the demo model, and what it refuses."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from saccade_interventions import shorthand
from saccade_interventions.artifacts import Artifact, read_artifact
from saccade_server import __version__
from saccade_server.calibration.collect import collect
from saccade_server.calibration.examples import CalibrationError, Labelled
from saccade_server.calibration.vectors import Calibrator
from saccade_server.cli import app
from saccade_server.config import engine_config
from saccade_server.demo.splits import Split
from saccade_server.evaluation.export import Questions, export_scenes
from saccade_server.inprocess import open_server


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions of which some have an absent companion and some do not."""
    folder = tmp_path_factory.mktemp("scenes")
    return export_scenes(folder, Split.VALIDATION, Questions.ABSENCE, 24)


def calibrate(*arguments: Any) -> str:
    done = CliRunner().invoke(app, ["calibrate", *map(str, arguments), "--threads", "1"])
    assert done.exit_code == 0, done.output
    return done.output


def read(path: Path) -> Artifact:
    return read_artifact(path.read_bytes())


def test_vectors(prompts: Path, tmp_path: Path) -> None:
    out, store = tmp_path / "v.safetensors", tmp_path / "store"
    options = ["--layers", "2-3", "--strengths", "0.5"]
    text = calibrate("vectors", prompts, "--out", out, *options, "--artifacts", store)
    made = read(out)
    assert made.kind == "vectors"
    assert made.tensors["layers"].tolist() == [2, 3]
    assert made.tensors["vectors"].shape == (2, 192)
    assert made.defaults.keys() == {"layers", "coefficient"}
    assert set(made.defaults["layers"]) < {2, 3}
    assert made.digest in text.replace("\n", "")
    assert (store / f"{made.digest.removeprefix('sha256:')}.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["v.safetensors"]
    other = tmp_path / "other.safetensors"
    calibrate("vectors", prompts, "--out", other, "--layers", "2,3", "--strengths", "0.5")
    assert read(other).digest == made.digest, "the same prompts must give the same bytes"
    calibrate("vectors", prompts, "--out", other, "--layers", "2,3", "--no-tune")
    assert read(other).defaults == {}
    np.testing.assert_array_equal(read(other).tensors["vectors"], made.tensors["vectors"])


def chosen(text: str) -> str:
    """The line that names the defaults, whatever width the terminal has."""
    return " ".join(text.split()).partition("default: ")[2]


def test_a_request_without_a_strength_gets_what_the_held_out_half_chose(
    prompts: Path, tmp_path: Path
) -> None:
    out, store = tmp_path / "v.safetensors", tmp_path / "store"
    keep = export_scenes(tmp_path / "kept", Split.CLEAR, Questions.DESCRIBE, 4)
    options = ["--out", out, "--layers", "4", "--artifacts", store, "--keep", keep]
    text = calibrate("vectors", prompts, *options, "--strengths", "1e-3,0.4")
    made = read(out)
    assert made.defaults == {"layers": [4], "coefficient": 0.4}
    assert chosen(text).startswith("residual 4, strength 0.4: +0.")
    assert "of 11 right" in chosen(text)
    entry = {"method": "steering", "artifact": made.digest}
    (implicit,) = asyncio.run(ask(store, entry))
    assert implicit["filled_in"] == {"layers": [4], "coefficient": 0.4}
    assert (implicit["layers"], implicit["status"]) == ([4], "applied")
    (explicit,) = asyncio.run(ask(store, {**entry, "layers": [4], "coefficient": 2}))
    assert explicit["filled_in"] == {}


@pytest.mark.parametrize("site", ["attention_output", "mlp_output"])
def test_vectors_of_a_site_are_tried_and_used_there(
    site: str, prompts: Path, tmp_path: Path
) -> None:
    out, store = tmp_path / "v.safetensors", tmp_path / "store"
    options = ["--out", out, "--site", site, "--layers", "1,4", "--artifacts", store]
    text = calibrate("vectors", prompts, *options, "--strengths", "1")
    made, (layer,) = read(out), read(out).defaults["layers"]
    assert made.tensors["layers"].tolist() == [1, 4]
    assert made.defaults == {"site": site, "layers": [layer], "coefficient": 1.0}
    what = "MLP" if site == "mlp_output" else "attention"
    assert chosen(text).startswith(f"{what} output of layer {layer}, strength 1")
    entry = {"method": "steering", "artifact": made.digest}
    (implicit,) = asyncio.run(ask(store, entry))
    assert implicit["filled_in"] == {"site": site, "layers": [layer], "coefficient": 1.0}
    assert implicit["status"] == "applied"
    calibrate("vectors", prompts, *options[:-2], "--no-tune")
    assert read(out).defaults == {"site": site}
    residuals = tmp_path / "r.safetensors"
    calibrate("vectors", prompts, "--out", residuals, "--layers", "1,4", "--no-tune")
    assert not np.allclose(read(residuals).tensors["vectors"], made.tensors["vectors"])


def test_what_helps_nobody_is_not_written_as_if_it_did(prompts: Path, tmp_path: Path) -> None:
    """Steering the wrong way: the weakest, and the text says so."""
    out = tmp_path / "v.safetensors"
    text = calibrate("vectors", prompts, "--out", out, "--layers", "4", "--strengths=-2,-0.1,-1")
    assert "nothing that was tried helps" in " ".join(text.split())
    assert read(out).defaults == {"layers": [4], "coefficient": -0.1}


def test_prompts_that_do_not_say_what_is_right(prompts: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in prompts.read_text().splitlines()]
    silent = prompts.parent / "silent.jsonl"
    bare = [{k: v for k, v in line.items() if k != "answer"} for line in lines]
    silent.write_text("\n".join(map(json.dumps, bare)))
    out = tmp_path / "v.safetensors"
    text = calibrate("vectors", silent, "--out", out, "--layers", "1,5")
    assert read(out).defaults == {"layers": [5], "coefficient": 1.0}, "told apart best"
    assert "not tried" in chosen(text)
    calibrate("head-vectors", silent, "--out", out, "--top", 2)
    assert read(out).defaults == {"alpha": 1.0}


def test_conversations_that_end_with_the_assistant(prompts: Path, tmp_path: Path) -> None:
    """As CAA has them: the same question, answered in both ways."""
    said = {"positive": "No.", "negative": "Yes."}
    lines = []
    for line in map(json.loads, prompts.read_text().splitlines()):
        turns = [{"role": "user", "content": line["prompt"]}]
        turns.append({"role": "assistant", "content": said[line["label"]]})
        lines.append({"messages": turns, "image": line["image"], "label": line["label"]})
    path = prompts.parent / "caa.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "v.safetensors"
    text = calibrate("vectors", path, "--out", out, "--layers", "3,4", "--strengths", "0.1,0.3")
    assert "positive less negative messages" in text
    assert read(out).defaults.keys() == {"layers", "coefficient"}


def test_heads_and_head_vectors_and_means(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "hv.safetensors"
    calibrate("head-vectors", prompts, "--out", out, "--top", 3, "--strengths", "0.5,15")
    made = read(out)
    assert made.tensors["heads"].shape == (3, 2)
    assert made.defaults.keys() == {"alpha"}
    assert abs(made.defaults["alpha"]) < 15, "the paper's ruins this model"
    norms = np.linalg.norm(made.tensors["vectors"], axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-5)
    assert made.tensors["sigma"].min() > 0
    calibrate("head-means", prompts, "--out", out)
    assert read(out).tensors["means"].shape == (6, 6, 32)
    assert read(out).model == made.model


def test_one_example_of_a_class_ranks_no_heads(prompts: Path, tmp_path: Path) -> None:
    """Nothing could be held out, and the order of heads would mean nothing."""
    lines = prompts.read_text().splitlines()
    labels = [json.loads(line)["label"] for line in lines]
    positive, negative = labels.index("positive"), labels.index("negative")
    second = labels.index("negative", negative + 1)
    few = prompts.parent / "few.jsonl"
    few.write_text("\n".join(lines[at] for at in (positive, negative, second)))
    out = tmp_path / "hv.safetensors"
    command = ["calibrate", "head-vectors", str(few), "--out", str(out), "--threads", "1"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert "are too few for two halves" in done.output.replace("\n", " ")
    done = CliRunner().invoke(app, [*command, "--no-tune"])
    assert done.exit_code == 2
    message = "1 positive and 2 negative prompts; at least 2 of each class are needed"
    assert message in done.output.replace("\n", " ")
    assert not out.exists()
    text = calibrate("vectors", few, "--out", out, "--layers", "3", "--no-tune")
    assert "unknown" in text, "one pair gives a direction, but no held-out accuracy"
    assert "nan" not in text


def test_a_head_with_equal_class_means_is_left_out(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Calibrator._collect

    def with_a_dead_head(self: Calibrator, *arguments: Any) -> torch.Tensor:
        values = whole(self, *arguments).clone()
        values[:, 1, 2] = 0
        return values

    monkeypatch.setattr(Calibrator, "_collect", with_a_dead_head)
    out = tmp_path / "hv.safetensors"
    text = calibrate("head-vectors", prompts, "--out", out, "--top", 36, "--no-tune")
    assert "1 of 36 heads are left out" in text
    heads = read(out).tensors["heads"].tolist()
    assert len(heads) == 35
    assert [1, 2] not in heads


def test_what_was_collected_belongs_to_a_version_and_a_precision(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of either command that goes on where it was."""
    seen: list[list[Any]] = []

    def collected(examples: Any, read: Any, path: Any, facts: list[Any], advance: Any) -> Any:
        seen.append(facts)
        raise CalibrationError("enough")

    class Stopped:
        def __init__(self, *arguments: Any) -> None:
            seen.append(arguments[5])
            raise CalibrationError("enough")

    monkeypatch.setattr("saccade_server.calibration.vectors.collect", collected)
    monkeypatch.setattr("saccade_server.calibration.heads.Sweep", Stopped)
    for command in ("vectors", "heads"):
        for dtype in ("float32", "bfloat16"):
            arguments = ["calibrate", command, str(prompts), "--out", str(tmp_path / "x")]
            done = CliRunner().invoke(app, [*arguments, "--dtype", dtype, "--threads", "1"])
            assert "enough" in done.output
            assert __version__ in seen[-1]
            assert dtype in seen[-1]
    assert len(seen) == 4


def test_act_is_calibrated_and_then_served(prompts: Path, tmp_path: Path) -> None:
    labels = [json.loads(line) for line in prompts.read_text().splitlines()]
    answers = {"positive": "No.", "negative": "Yes."}
    path = prompts.parent / "answers.jsonl"
    lines = [json.dumps({**line, "label": answers[line["label"]]}) for line in labels]
    path.write_text("\n".join(lines))
    out, store = tmp_path / "act.safetensors", tmp_path / "store"
    entry = "act:beta=0.0,theta=0.02"
    options = ["--out", out, "--layers", "3", "--entry", entry, "--by-probability"]
    text = calibrate("act", path, *options, "--margin", 0, "--artifacts", store)
    made = read(out)
    assert made.kind == "heads"
    assert set(made.tensors["heads"][:, 0]) == {3}
    assert f"{len(made.tensors['heads'])} of 6 heads are kept" in text
    (applied,) = asyncio.run(ask(store, {**shorthand.parse(entry), "artifact": made.digest}))
    assert applied["status"] == "applied"
    assert applied["heads"] == len(made.tensors["heads"])

    arguments = ["calibrate", "act", str(path), *map(str, options), "--threads", "1"]
    done = CliRunner().invoke(app, [*arguments, "--margin", "9"])
    assert done.exit_code == 2
    assert "no head helps by more than 9" in done.output


async def ask(store: Path, entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The receipt of one answer, from a server with these artifacts."""
    async with open_server(engine_config(threads=1), "m", artifacts=store) as client:
        sent = {
            "messages": [{"role": "user", "content": "Is there a red circle?"}],
            "interventions": [entry],
            "max_tokens": 3,
        }
        answer = (await client.post("/v1/chat/completions", json=sent)).json()
    found: list[dict[str, Any]] = answer["interventions_applied"]
    return found


def test_sinks(tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    text = calibrate("sinks", "--out", out)
    assert sorted(read(out).tensors["dims"].tolist()) == [37, 121]
    assert "37" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vectors", "none.jsonl"], "there is no file none.jsonl"),
        (["vectors", "{prompts}", "--layers", "6"], "there is no residual 6"),
        (["vectors", "{prompts}", "--layers", "6", "--site", "mlp_output"], "no layer 6"),
        (["vectors", "{prompts}", "--site", "heads"], "choose one of residual, attention_output,"),
        (["vectors", "{prompts}", "--layers", "a-b"], "no range of layers"),
        (["vectors", "{prompts}", "--direction", "svm"], "mean or pca"),
        (["vectors", "{prompts}", "--positive", "maybe"], "labels are negative"),
        (["vectors", "{prompts}", "--strengths", "1,x"], "no list of numbers"),
        (["vectors", "{prompts}", "--strengths", "0,1"], "and is not 0"),
        (["head-vectors", "{prompts}", "--strengths", "nan"], "and is not 0"),
        (["vectors", "{prompts}", "--keep", "none.jsonl"], "there is no file none.jsonl"),
        (["vectors", "{prompts}", "--keep", "{prompts}", "--layers", "7"], "no residual 7"),
        (["act", "{prompts}", "--layers", "9", "--entry", "pai"], "there is no layer 9"),
        (["act", "{prompts}", "--entry", "nope"], "unknown method"),
        (["sinks", "--out", "/proc/none/x"], "/proc/none"),
    ],
)
def test_bad_input_ends_with_2_and_says_why(
    prompts: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    filled = [text.format(prompts=prompts) for text in arguments]
    out = [] if "--out" in filled else ["--out", str(tmp_path / "x.safetensors")]
    done = CliRunner().invoke(app, ["calibrate", *filled, *out])
    assert done.exit_code == 2
    assert message in done.output.replace("\n", " ")
    assert not (tmp_path / "x.safetensors").exists()


EXAMPLES = [Labelled(f"p:{at}", (("user", f"{at}"),), (), "true") for at in range(5)]


def test_collecting_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "partial"

    def value(example: Labelled) -> torch.Tensor:
        return torch.full((2, 3), float(example.turns[0][1]))

    first = collect(EXAMPLES, value, path, ["a"])
    calls: list[Labelled] = []
    again = collect(EXAMPLES, lambda example: calls.append(example) or value(example), path, ["a"])
    assert torch.equal(first, again)
    assert first[:, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert not calls
    with pytest.raises(CalibrationError, match="of another calibration"):
        collect(EXAMPLES, value, path, ["b"])
    with pytest.raises(CalibrationError, match="of another calibration"):
        collect(EXAMPLES[:4], value, path, ["a"])
    path.write_bytes(b"torn")
    with pytest.raises(CalibrationError, match="delete it"):
        collect(EXAMPLES, value, path, ["a"])


def test_an_interrupted_collection_keeps_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saccade_server.calibration.collect.SECONDS_BETWEEN_SAVES", -1.0)
    seen: list[str] = []

    def value(example: Labelled) -> torch.Tensor:
        seen.append(example.place)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return torch.zeros(1)

    with pytest.raises(KeyboardInterrupt):
        collect(EXAMPLES, value, tmp_path / "partial", [])
    assert collect(EXAMPLES, value, tmp_path / "partial", []).shape == (5, 1)
    assert seen == ["p:0", "p:1", "p:2", "p:3", "p:3", "p:4"]
