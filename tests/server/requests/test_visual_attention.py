"""Which tokens the visual attention score is about, in chats of many forms, and its formula."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade_interventions.context import Prompt
from saccade_server.models.conversation import Message
from saccade_server.models.prompt import PromptProcessor
from saccade_server.requests.prepared import described
from saccade_server.requests.visual_attention import ratios, regions, summary

Folder = Callable[[str], tuple[str, Any]]
CHATS = {  # what is before the user's marker, and the user's words behind the image
    "llava": ("SYSTEM: Be brief. ", "Is it red? "),
    "llava_next": ("SYSTEM: Be brief. ", "Is it red? "),
    "internvl": ("<|im_start|>system\nBe brief.<|im_end|>\n", "</img>\nIs it red?<|im_end|>\n"),
    "smolvlm": (
        "<|im_start|>System: Be brief.<end_of_utterance>\n",
        "<fake_token_around_image>Is it red?",
    ),
    "qwen2_vl": ("<|im_start|>system\nBe brief.<|im_end|>\n", "<|vision_end|>Is it red?"),
}


@pytest.mark.parametrize("family", CHATS)
def test_regions_of_a_chat(family: str, prompt_folder: Folder) -> None:
    """With a second turn behind, whose words are not the row's."""
    processor = PromptProcessor.load(prompt_folder(family)[0])
    image = Image.new("RGB", (40, 30), (200, 30, 30))
    chat = [
        Message("system", ("Be brief.",)),
        Message("user", (image, "Is it red?")),
        Message("assistant", ("Yes.",)),
        Message("user", ("Sure?",)),
    ]
    rendered = processor.chat(chat)
    prompt = described(rendered)
    found = regions(prompt)
    before, behind = CHATS[family]

    def text(start: int, end: int) -> str:
        return processor.text(rendered.tokens[start:end]).strip()

    start, end = found.system
    assert start == 1
    assert text(0, end).removeprefix("<s>").strip() == before.strip()
    assert processor.text(rendered.tokens[end:]).lstrip().upper().startswith(("USER", "<|IM_START"))
    assert found.images == prompt.images
    assert found.rows[0] == prompt.images[-1][1]
    assert text(*found.rows).startswith(behind.strip())
    assert "Yes" not in text(*found.rows)
    assert "Sure" not in text(*found.rows)
    assert regions(prompt, with_first=True).system == (0, end)


def words(text: str, images: tuple[tuple[int, int], ...] = ((2, 3),)) -> Prompt:
    """A token a word, blanks before."""
    parts = text.split(" ")
    ends = np.cumsum([len(part) + 1 for part in parts]) - 1
    offsets = [(int(end) - len(part), int(end)) for part, end in zip(parts, ends, strict=True)]
    return Prompt(len(parts), images, text, offsets)


def test_a_prompt_without_such_tokens_has_no_score() -> None:
    assert regions(words("BOS sys USER: <im> what ASSISTANT:", ((3, 4),))).rows == (4, 5)
    with pytest.raises(ValueError, match="the prompt has no image"):
        regions(words("BOS sys USER: what", ()))
    for text, reason in {
        "BOS sys <im> what": "no role marker of a user is known in the prompt",
        "USER: say <im> what": "nothing is before the first user's turn",
        "BOS USER: <im> what": "nothing is before the first user's turn",
        "BOS sys <im> USER: what": "an image is before the first user's turn",
        "BOS USERS: <im> USER: what": "an image is before the first user's turn",
    }.items():
        with pytest.raises(ValueError, match=reason):
            regions(words(text))
    with pytest.raises(ValueError, match="no token of the user is behind the last image"):
        regions(words("BOS sys USER: <im> ASSISTANT:", ((3, 4),)))
    with pytest.raises(ValueError, match="no token of the user is behind the last image"):
        regions(words("BOS sys USER: <im>", ((3, 4),)))


def test_the_worked_example() -> None:
    """avar.md, the end: two rows and two heads."""
    image = np.array([[[0.30, 0.20]], [[0.10, 0.05]]])
    system = np.array([[[0.10, 0.40]], [[0.50, 0.90]]])
    found = summary(image, system)
    assert found.mean_of_ratios == pytest.approx(0.938889, abs=1e-6)
    assert found.ratio_of_sums == pytest.approx(0.342105, abs=1e-6)
    assert (found.image, found.system) == pytest.approx((0.1625, 0.475))
    assert found.other == pytest.approx(0.3625)
    assert ratios(np.array([0.5]), np.array([0.0])).tolist() == [5e5]
