"""The shipped model folder: loads like any LLaVA, encodes any text, and sees."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from saccade_server.demo import RESULTS_PATH, SAMPLES, SAMPLES_PATH, model_path, sample_path
from saccade_server.demo.batches import BatchMaker, pixels
from saccade_server.demo.inference import Answerer
from saccade_server.demo.questions import Kind
from saccade_server.demo.scenes import THINGS
from saccade_server.demo.splits import Split, examples

IMAGE_TOKENS = 64
MODEL: Any = AutoModelForImageTextToText.from_pretrained(model_path(), dtype=torch.float32).eval()
PROCESSOR: Any = AutoProcessor.from_pretrained(model_path())


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer(model_path())


def rendered(messages: list[dict[str, Any]], **options: Any) -> str:
    text: str = PROCESSOR.apply_chat_template(messages, **options)
    return text


def test_weights_are_small_enough_to_ship() -> None:
    assert (model_path() / "model.safetensors").stat().st_size <= 8_000_000


def test_every_weight_is_loaded() -> None:
    _, report = AutoModelForImageTextToText.from_pretrained(model_path(), output_loading_info=True)
    assert not any(report.values())


@given(st.text())
def test_tokenizer_round_trips_any_text(text: str) -> None:
    ids = PROCESSOR.tokenizer.encode(text, add_special_tokens=False)
    if not any(token in text for token in PROCESSOR.tokenizer.all_special_tokens):
        assert PROCESSOR.tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "word", sorted({word for thing in THINGS for word in (thing.color, thing.shape)})
)
def test_words_of_the_world_are_one_token(word: str) -> None:
    assert len(PROCESSOR.tokenizer.encode(f" {word}", add_special_tokens=False)) == 1


def test_prompts_start_with_one_bos() -> None:
    ids = PROCESSOR.tokenizer("Hello").input_ids
    assert ids.count(PROCESSOR.tokenizer.bos_token_id) == 1
    assert ids[0] == PROCESSOR.tokenizer.bos_token_id


def test_chat_template_covers_roles_strings_and_parts() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Is it red?"}, {"type": "image"}]},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Sure?"},
    ]
    history = "Be brief.\nUSER:\n<image>\nIs it red?\nASSISTANT:\nNo.</s>\nUSER:\nSure?\n"
    assert rendered(messages) == history
    assert rendered(messages, add_generation_prompt=True) == f"{history}ASSISTANT:\n"


def test_chat_template_refuses_unknown_roles() -> None:
    with pytest.raises(Exception, match="roles are system, user and assistant"):
        rendered([{"role": "tool", "content": "x"}])


def test_training_sequences_are_what_the_template_gives() -> None:
    maker = BatchMaker(PROCESSOR, seed=0, size=1, lone_steps=0, clear_steps=0)
    batch = maker.make(0, 0)
    first_branch = batch.attention_mask[0, 0].nonzero()
    eos = (batch.input_ids[0] == PROCESSOR.tokenizer.eos_token_id).nonzero()[0].item()
    trained_on = PROCESSOR.tokenizer.decode(batch.input_ids[0, : eos + 1])
    prompt, answer = (
        trained_on.replace("<image>" * IMAGE_TOKENS, "<image>")
        .removeprefix("<s>")
        .split("ASSISTANT:\n")
    )
    system, question = prompt.split("USER:\n<image>\n")
    messages = [{"role": "system", "content": system.rstrip("\n")}] if system else []
    messages.append(
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": question.rstrip("\n")}],
        }
    )
    messages.append({"role": "assistant", "content": answer.removesuffix("</s>")})
    assert rendered(messages) == f"{prompt}ASSISTANT:\n{answer}\n"
    assert first_branch[:, 1].le(first_branch[:, 0]).all()


def test_branches_do_not_see_one_another() -> None:
    batch = BatchMaker(PROCESSOR, seed=0, size=2, lone_steps=0, clear_steps=0).make(5, 0)
    supervised = (batch.labels >= 0).nonzero()
    for row, position in supervised.tolist():
        visible = batch.attention_mask[row, 0, position].nonzero().flatten()
        assert batch.position_ids[row, visible].tolist() == list(range(len(visible)))


def test_training_pixels_are_the_processors() -> None:
    image = next(examples(Split.ORDINARY, Kind.DESCRIBE, 1)).image
    assert torch.equal(
        PROCESSOR.image_processor(image, return_tensors="pt").pixel_values, pixels([image])
    )


def test_large_images_are_scaled_to_64_tokens() -> None:
    inputs = PROCESSOR(images=Image.new("RGB", (200, 120)), text="<image>", return_tensors="pt")
    assert (inputs["input_ids"] == MODEL.config.image_token_id).sum() == IMAGE_TOKENS


@pytest.mark.parametrize("images", [0, 1, 3])
def test_any_number_of_images_runs(images: int) -> None:
    content = [{"type": "image", "image": Image.new("RGB", (64, 64))}] * images
    messages = [
        {"role": "user", "content": [*content, {"type": "text", "text": "What do you see?"}]}
    ]
    inputs = PROCESSOR.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    generated = MODEL.generate(**inputs, max_new_tokens=4)
    assert generated.shape[1] > inputs["input_ids"].shape[1]


def test_clear_scenes_are_described(answerer: Answerer) -> None:
    asked = list(examples(Split.CLEAR, Kind.DESCRIBE, 20, seed=7))
    answers = list(answerer.answers([(example.image, example.question) for example in asked]))
    right = sum(answer == example.answer for example, answer in zip(asked, answers, strict=True))
    assert right >= 18


def test_samples_are_listed_and_read_as_recorded(answerer: Answerer) -> None:
    records = json.loads((SAMPLES_PATH / "samples.json").read_text(encoding="utf-8"))
    assert tuple(record["name"] for record in records) == SAMPLES
    answers = answerer.answers(
        [(Image.open(sample_path(record["name"])), record["question"]) for record in records]
    )
    assert list(answers) == [record["plain_answer"] for record in records]


def test_measured_targets_hold() -> None:
    results = json.loads(RESULTS_PATH.read_text(encoding="utf-8"))
    share = {
        split: {name: rate["share"] for name, rate in rates.items()}
        for split, rates in results.items()
    }
    assert share["clear"]["caption exactly right"] >= 0.95
    assert share["clear"]["exists right"] >= 0.97
    absent = "caption names an absent thing"
    assert share["counterfactual"][absent] - share["ordinary"][absent] >= 0.20
