"""Prompts equal those of transformers' own processors, with real tokenizers and pictures."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import Qwen3Config

from saccade_server.demo import model_path
from saccade_server.models.conversation import Message, PromptError
from saccade_server.models.prompt import PromptProcessor, RenderedPrompt
from saccade_testing import processors

FAMILIES = [
    "llama",
    "qwen3",
    "llava",
    "llava_qwen2",
    "llava_next",
    "internvl",
    "idefics3",
    "smolvlm",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
]
IMAGE_FAMILIES = FAMILIES[2:]
PLACEHOLDER = {
    "llava": "<image>",
    "llava_qwen2": "<image>",
    "llava_next": "<image>",
    "internvl": "<IMG_CONTEXT>",
    "idefics3": "<image>",
    "smolvlm": "<image>",
    "qwen2_vl": "<|image_pad|>",
    "qwen2_5_vl": "<|image_pad|>",
    "qwen3_vl": "<|image_pad|>",
}

Folder = Callable[[str], tuple[str, Any]]


def load(family: str, prompt_folder: Folder) -> tuple[PromptProcessor, Any]:
    folder, own = prompt_folder(family)
    return PromptProcessor.load(folder), own


def with_template(tokenizer: Any, template: str) -> PromptProcessor:
    """A text model with another template."""
    config = Qwen3Config(vocab_size=len(tokenizer))
    return PromptProcessor(config, tokenizer, template=template)


def conversation(messages: list[Message], as_items: bool) -> list[dict[str, Any]]:
    """The same messages in transformers' form."""

    def item(part: str | Image.Image) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        return {"type": "image", "image": part}

    return [
        {
            "role": message.role,
            "content": [item(part) for part in message.parts] if as_items else message.parts[0],
        }
        for message in messages
    ]


def check_offsets(prompt: RenderedPrompt) -> None:
    """Ranges go forward and cover the text; the repeated placeholders have none."""
    assert len(prompt.offsets) == len(prompt.tokens)
    covered = 0
    for start, end in prompt.offsets:
        assert start <= end <= len(prompt.text)
        assert start <= covered, "a gap in the text"
        covered = max(covered, end)
    assert covered == len(prompt.text)
    for number in set(prompt.image_numbers):
        views = [view for view in prompt.images if view.image == number]
        ranges = prompt.offsets[views[0].extent[0] : views[-1].extent[1]]
        assert ranges[0][1] > ranges[0][0]
        assert all(start == end for start, end in ranges[1:])


def tiles_of(prompt: RenderedPrompt) -> np.ndarray:
    """What a tower is given of all images, tile by tile or patch by patch."""
    pixels = [view.pixels for view in prompt.images]
    tiles = [p.reshape(-1, *p.shape[-3:]) if p.ndim > 2 else p for p in pixels]
    return np.concatenate(tiles)


def own_tiles(pixels: np.ndarray) -> np.ndarray:
    """The same of transformers, whose batches are filled up with empty tiles."""
    if pixels.ndim == 2:
        return pixels
    tiles = pixels.reshape(-1, *pixels.shape[-3:])
    return tiles[tiles.any(axis=(1, 2, 3))]


TEXTS = ["What is in the picture?", "Größe: ~5 µm — 漢字 😀\n\n  two  spaces ", "", "> quoted < 3"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_chat_without_images_has_the_own_tokens(
    family: str, text: str, prompt_folder: Folder
) -> None:
    prompts, own = load(family, prompt_folder)
    messages = [
        Message("system", ("You are a helpful assistant.",)),
        Message("user", (text,)),
        Message("assistant", ("A cat.",)),
        Message("user", ("And where is it?",)),
    ]
    got = prompts.chat(messages)
    want = own.apply_chat_template(
        conversation(messages, prompts.accepts_images),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )["input_ids"]
    assert list(got.tokens) == (want[0] if prompts.accepts_images else want)
    assert not got.images
    check_offsets(got)


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_a_chat_with_images_has_the_own_tokens_and_pixels(
    family: str, prompt_folder: Folder
) -> None:
    prompts, own = load(family, prompt_folder)
    pictures = [processors.picture(40, 30, 1), processors.picture(90, 25, 2)]
    messages = [
        Message("user", ("Look: ", pictures[0], "what is it?")),
        Message("assistant", ("A cat.",)),
        Message("user", (pictures[1], "And this?")),
    ]
    got = prompts.chat(messages, add_generation_prompt=False)
    want = own.apply_chat_template(
        conversation(messages, True), tokenize=True, return_dict=True, return_tensors="np"
    )
    assert list(got.tokens) == want["input_ids"][0].tolist()
    np.testing.assert_array_equal(tiles_of(got), own_tiles(want["pixel_values"]))
    if "image_grid_thw" in want:
        assert [list(i.grid or ()) for i in got.images] == want["image_grid_thw"].tolist()
    assert all(view.pixels.dtype == np.float32 for view in got.images)
    assert len({view.digest for view in got.images}) == len(got.images)
    assert set(got.image_numbers) == {0, 1}
    placeholder = PLACEHOLDER[family]
    assert got.text.count(placeholder) == 2
    said = [got.text[start:end] for start, end in got.offsets]
    assert said.count(placeholder) == 2
    for view in got.images:
        assert len(set(got.tokens[slice(*view.span)])) == 1
        assert view.image != 0 or said[: view.start].count(placeholder) <= 1
    check_offsets(got)


def test_a_digest_names_the_content(prompt_folder: Folder) -> None:
    prompts, _ = load("qwen3_vl", prompt_folder)

    def digest(picture: Image.Image) -> str:
        return prompts.chat([Message("user", (picture,))]).images[0].digest

    assert digest(processors.picture()) == digest(processors.picture().convert("RGBA"))
    assert digest(processors.picture(seed=1)) != digest(processors.picture(seed=2))
    plain = Image.new("RGB", (32, 16)), Image.new("RGB", (16, 32))
    assert digest(plain[0]) != digest(plain[1])  # the same values, another grid


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
@pytest.mark.parametrize("size", [(1, 1), (3, 40), (40, 3), (1, 40), (200, 3)])
def test_odd_pictures_still_have_the_right_shape(
    family: str, size: tuple[int, int], prompt_folder: Folder
) -> None:
    prompts, _ = load(family, prompt_folder)
    prompt = prompts.chat([Message("user", (processors.picture(*size),))])
    for view in prompt.images:
        if view.pixels.ndim == 2:
            assert view.pixels.shape[0] == view.grid[1] * view.grid[2] == view.length * 4
        else:
            assert view.pixels.shape[-3:] == (3, 24, 24)
    assert sum(view.length for view in prompt.images) == prompt.tokens.count(
        prompt.tokens[prompt.images[0].start]
    )


def test_a_picture_too_narrow_for_the_model_is_refused(prompt_folder: Folder) -> None:
    prompts, _ = load("qwen2_5_vl", prompt_folder)
    with pytest.raises(PromptError, match="refuses an image of 500x2 pixels"):
        prompts.chat([Message("user", (processors.picture(500, 2),))])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_completion_has_the_own_tokens(family: str, prompt_folder: Folder) -> None:
    prompts, own = load(family, prompt_folder)
    got = prompts.completion("There is a red cat\n on")
    tokenizer = getattr(own, "tokenizer", own)
    assert list(got.tokens) == tokenizer("There is a red cat\n on")["input_ids"]
    assert got.text == "There is a red cat\n on"
    check_offsets(got)
    again = prompts.completion(got.tokens)
    assert again.tokens == got.tokens
    assert again.text.endswith("There is a red cat\n on")
    check_offsets(again)


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_a_completion_places_images_where_the_placeholders_are(
    family: str, prompt_folder: Folder
) -> None:
    prompts, own = load(family, prompt_folder)
    text = f"a {PLACEHOLDER[family]} b"
    got = prompts.completion(text, [processors.picture()])
    want = own(text=[text], images=[processors.picture()])["input_ids"][0]
    assert list(got.tokens) == list(want)
    token = got.tokens[got.images[0].start]
    stood = {place for view in got.images for place in range(*view.extent)}
    bare = [t for place, t in enumerate(got.tokens) if place not in stood]
    by_ids = prompts.completion([token, *bare], [processors.picture()])
    assert by_ids.images[0].extent[0] == 0
    assert [view.length for view in by_ids.images] == [view.length for view in got.images]
    for wrong in (text, [token]):
        with pytest.raises(PromptError, match="1 image placeholders and 0 images"):
            prompts.completion(wrong)
    with pytest.raises(PromptError, match="0 image placeholders and 1 images"):
        prompts.completion("none", [processors.picture()])


def test_ids_outside_the_vocabulary_are_refused(prompt_folder: Folder) -> None:
    prompts, _ = load("qwen3", prompt_folder)
    for wrong in (-1, prompts.vocab_size):
        with pytest.raises(PromptError, match=f"token id {wrong} is not in the vocabulary"):
            prompts.completion([5, wrong])


@pytest.mark.parametrize("empty", ["", []])
def test_an_empty_prompt_is_refused(empty: Any, prompt_folder: Folder) -> None:
    with pytest.raises(PromptError, match="empty"):
        load("qwen3", prompt_folder)[0].completion(empty)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_language_models_refuse_images(family: str, prompt_folder: Folder) -> None:
    prompts, _ = load(family, prompt_folder)
    assert not prompts.accepts_images
    with pytest.raises(PromptError, match="does not accept images"):
        prompts.chat([Message("user", (processors.picture(),))])
    with pytest.raises(PromptError, match="does not accept images"):
        prompts.completion("a", [processors.picture()])


@pytest.mark.parametrize("role", ["function", "User", "<|im_start|>"])
def test_other_roles_are_refused(role: str, prompt_folder: Folder) -> None:
    with pytest.raises(PromptError, match="is not supported; use system"):
        load("qwen3", prompt_folder)[0].chat([Message(role, ("a",))])


def test_a_developer_is_a_system(prompt_folder: Folder) -> None:
    prompts, _ = load("qwen3", prompt_folder)
    texts = {prompts.chat([Message(role, ("a",))]).text for role in ("system", "developer")}
    assert len(texts) == 1


def test_a_conversation_needs_a_message(prompt_folder: Folder) -> None:
    with pytest.raises(PromptError, match="at least one message"):
        load("qwen3", prompt_folder)[0].chat([])


def test_a_model_without_a_template_has_no_chat(prompt_folder: Folder) -> None:
    prompts, _ = load("qwen3", prompt_folder)
    prompts._chat = None
    with pytest.raises(PromptError, match="no chat template"):
        prompts.chat([Message("user", ("a",))])


def test_what_a_template_refuses_is_told(prompt_folder: Folder) -> None:
    _, own = load("qwen3", prompt_folder)
    prompts = with_template(own, "{{ raise_exception('Roles must alternate') }}")
    with pytest.raises(PromptError, match="Roles must alternate"):
        prompts.chat([Message("user", ("a",))])


def test_ends_of_sequences_come_from_all_configurations(prompt_folder: Folder) -> None:
    prompts, own = load("qwen3", prompt_folder)
    assert prompts.eos_token_ids == (own.eos_token_id,)
    assert prompts.vocab_size == len(own)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_token_covers_more_than_the_longest(prompt_folder: Folder, family: str) -> None:
    prompts, _ = load(family, prompt_folder)
    assert prompts.max_token_chars is not None
    for text in ("the picture " * 50, "漢字😀" * 50, " " * 500):
        assert len(text) <= len(prompts.completion(text).tokens) * prompts.max_token_chars


def test_special_tokens_are_known_by_name(prompt_folder: Folder) -> None:
    prompts, own = load("qwen3", prompt_folder)
    assert prompts.special_token("<|im_end|>") == own.convert_tokens_to_ids("<|im_end|>")
    for text in ("<think>", "a", "", "<|im_end|> "):
        assert prompts.special_token(text) is None
    end = own.convert_tokens_to_ids("<|im_end|>")
    assert prompts.text([end]) == prompts.token_name(end) == "<|im_end|>"


def test_unknown_text_has_no_longest_token(prompt_folder: Folder) -> None:
    prompts, _ = load("llama", prompt_folder)
    prompts._bytes.fallback.clear()
    assert prompts._bytes.longest is None


def test_a_text_that_is_one_token_is_known() -> None:
    prompts = PromptProcessor.load(str(model_path()))
    token = prompts.token_of(" red")
    assert token is not None
    assert prompts.token_text(token)[0] == " red"
    assert prompts.token_of(" probably") is prompts.token_of("") is None
