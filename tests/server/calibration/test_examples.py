"""Labelled prompts: what a line may say, and what is wrong with one that says something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from saccade_server.calibration.examples import CalibrationError, classes, read_examples
from saccade_server.demo.splits import Split
from saccade_server.evaluation.export import Questions, export_scenes

GOOD = {"prompt": "a?", "label": "Yes."}


def write(path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n")
    return path


def test_all_forms(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "a.png")
    conversation = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a?"},
        {"role": "assistant", "content": "b"},
    ]
    path = write(
        tmp_path / "p.jsonl",
        GOOD,
        "",
        {"messages": conversation, "images": ["a.png", "a.png"], "label": True},
    )
    plain, long = read_examples(path)
    assert plain.as_chat() == [{"role": "user", "content": "a?"}]
    assert plain.said is None
    assert (plain.place, long.place) == (f"{path}:1", f"{path}:3")
    assert long.label == "true"
    assert long.said == "b"
    system, user, assistant = long.as_chat()
    assert system["content"] == "be brief"
    assert [part["type"] for part in user["content"]] == ["image_url", "image_url", "text"]
    assert assistant["content"] == "b"
    messages = long.as_messages()
    assert [message.role for message in messages] == ["system", "user", "assistant"]
    assert messages[1].parts[0].getpixel((0, 0)) == (255, 0, 0)  # type: ignore[union-attr]
    assert messages[1].parts[2] == "a?"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", ', ":2: not JSON"),
        ("[1]", ":2: a line is a JSON object"),
        ('{"prompt": "\\ud800", "label": "x"}', ":2: it holds a lone surrogate"),
        ("[" * 9999, ":2: not JSON"),
        ({"prompt": "a", "label": "x", "answer": " "}, ":2: answer is a text"),
        ({"prompt": "a", "label": "x", "answer": True}, ":2: answer is a text"),
        ({"prompt": "a", "label": "x", "lable": 1}, ":2: unknown field 'lable'"),
        ({"label": "x"}, ":2: give prompt or messages"),
        ({"prompt": "a", "messages": [], "label": "x"}, ":2: give prompt or messages"),
        ({"prompt": "", "label": "x"}, ":2: prompt is a text"),
        ({"messages": [], "label": "x"}, ":2: messages is a list"),
        ({"messages": [{"role": "user"}], "label": "x"}, ":2: a message has a role"),
        ({"messages": [{"role": "tool", "content": "a"}], "label": "x"}, ":2: a message has a"),
        ({"messages": [{"role": "user", "content": []}], "label": "x"}, ":2: a message has a"),
        ({"prompt": "a"}, ":2: label is a text"),
        ({"prompt": "a", "label": 2}, ":2: label is a text"),
        ({"prompt": "a", "label": " "}, ":2: label is a text"),
        ({"prompt": "a", "label": "x", "image": "no.png"}, r":2: there is no file .*no\.png"),
        ({"prompt": "a", "label": "x", "images": "no.png"}, ":2: images are names"),
        ({"prompt": "a", "label": "x", "image": "b", "images": []}, ":2: give image or images"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: Any, message: str) -> None:
    path = write(tmp_path / "p.jsonl", GOOD, line)
    with pytest.raises(CalibrationError, match=message):
        read_examples(path)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="No such file"):
        read_examples(tmp_path / "none.jsonl")
    with pytest.raises(CalibrationError, match="there are no prompts"):
        read_examples(write(tmp_path / "empty.jsonl", ""))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CalibrationError, match="decode"):
        read_examples(tmp_path / "binary")


def test_an_image_that_is_none_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {**GOOD, "image": "a.png"})
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(CalibrationError, match=r"p\.jsonl:1: the image .*a\.png"):
        read_examples(path)


def test_an_image_that_is_cut_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {**GOOD, "image": "a.png"})
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:1000])
    (example,) = read_examples(path)
    with pytest.raises(CalibrationError, match=r"p\.jsonl:1: the image .*a\.png"):
        example.as_messages()


def labels(tmp_path: Path, *values: Any) -> Any:
    lines = [{"prompt": "a", "label": value} for value in values]
    return read_examples(write(tmp_path / "p.jsonl", *lines))


def test_classes(tmp_path: Path) -> None:
    found = classes(labels(tmp_path, "positive", "Negative", True, False, 1, 0))
    assert found == [True, False, True, False, True, False]
    assert classes(labels(tmp_path, "Yes.", "No.", "Yes."), "No.") == [False, True, False]


def test_both_classes_are_needed(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="all 2 labels are positive"):
        classes(labels(tmp_path, True, True))
    with pytest.raises(CalibrationError, match="all 2 labels are negative"):
        classes(labels(tmp_path, "a", "b"), "c")
    with pytest.raises(CalibrationError, match=r":2: the label 'Yes\.' is neither"):
        classes(labels(tmp_path, True, "Yes."))


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    """JSON texts may hold other separators of lines as they are."""
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a\u2028b", "label": "x"}\r\n{"prompt": "c", "label": "y"}\n')
    assert [example.turns[0][1] for example in read_examples(path)] == ["a\u2028b", "c"]


@pytest.mark.parametrize("questions", list(Questions))
def test_exported_scenes_are_read_back(tmp_path: Path, questions: Questions) -> None:
    path = export_scenes(tmp_path, Split.VALIDATION, questions, 6)
    found = read_examples(path)
    assert len(found) == 6
    assert all(example.images[0].is_file() for example in found)
    if questions is Questions.ABSENCE:
        answers = read_examples(
            export_scenes(tmp_path / "b", Split.VALIDATION, Questions.COMPANION, 6)
        )
        assert classes(found) == [example.label == "No." for example in answers]
