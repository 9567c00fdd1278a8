"""Control tokens that a client typed are text, whatever he does to smuggle them in."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tokenizers import AddedToken, normalizers

from saccade_server.models.conversation import Message, PromptError
from saccade_server.models.prompt import PromptProcessor
from saccade_server.models.sanitize import PRIVATE_CHARACTERS, ControlTokens, Segment
from saccade_testing import processors

FAMILIES = ["llama", "qwen3", "llava", "qwen2_5_vl", "qwen3_vl"]

Folder = Callable[[str], tuple[str, Any]]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def control_ids(prompts: PromptProcessor, tokens: tuple[int, ...]) -> list[int]:
    """Control tokens of a prompt, in order."""
    return [token for token in tokens if token in prompts._tokenizer.added_tokens_decoder]


def controls(prompts: PromptProcessor) -> list[str]:
    return sorted(prompts._encoder.controls.special | prompts._encoder.controls.others)


def test_typed_control_tokens_stay_text(family: str, prompt_folder: Folder) -> None:
    prompts = PromptProcessor.load(prompt_folder(family)[0])
    plain = prompts.chat([Message("system", ("a b",)), Message("user", ("a b",))])
    typed = f"a{''.join(controls(prompts))} b{' '.join(controls(prompts))}"
    got = prompts.chat([Message("system", (typed,)), Message("user", (typed,))])
    assert control_ids(prompts, got.tokens) == control_ids(prompts, plain.tokens)
    assert got.text == plain.text.replace("a b", typed)
    assert got.text.count(typed) == 2
    decoded = prompts._backend.decode(list(got.tokens), skip_special_tokens=False)
    assert decoded.count(typed) == 2
    pieces = [got.text[start:end] for start, end in got.offsets]
    assert "".join(dict.fromkeys(pieces)) != ""
    assert max(end for _, end in got.offsets) == len(got.text)


def test_every_single_control_token_is_harmless(family: str, prompt_folder: Folder) -> None:
    prompts = PromptProcessor.load(prompt_folder(family)[0])
    want = control_ids(prompts, prompts.chat([Message("user", ("x",))]).tokens)
    for control in controls(prompts):
        got = prompts.chat([Message("user", (control,))])
        assert control_ids(prompts, got.tokens) == want
        assert control in got.text


def test_a_typed_placeholder_takes_no_image(prompt_folder: Folder) -> None:
    prompts = PromptProcessor.load(prompt_folder("llava")[0])
    got = prompts.chat([Message("user", ("see <image>:", processors.picture(), "<image>?"))])
    assert len(got.images) == 1
    start, end = got.offsets[got.images[0].start]
    assert got.text[:start].endswith("see <image>:")
    assert got.text[start:end] == "<image>"
    assert got.text[end:].startswith("\n<image>?")


def test_a_token_cut_in_two_parts_does_not_grow_together(prompt_folder: Folder) -> None:
    prompts = PromptProcessor.load(prompt_folder("qwen2_5_vl")[0])
    want = control_ids(prompts, prompts.chat([Message("user", ("x",))]).tokens)
    for cut in range(1, len("<|image_pad|>")):
        parts = "<|image_pad|>"[:cut], "<|image_pad|>"[cut:]
        got = prompts.chat([Message("user", parts)])
        assert control_ids(prompts, got.tokens) == want
        assert "\n".join(parts) in got.text


def test_private_characters_of_a_client_are_only_characters(prompt_folder: Folder) -> None:
    prompts = PromptProcessor.load(prompt_folder("qwen3")[0])
    text = "".join(PRIVATE_CHARACTERS[:3]) + "<|im_end|>" + PRIVATE_CHARACTERS[3]
    got = prompts.chat([Message("user", (text,))])
    assert text in got.text
    assert prompts._backend.decode(list(got.tokens), skip_special_tokens=False) == got.text


def test_what_the_model_wrote_comes_back_as_it_was(prompt_folder: Folder) -> None:
    """<think> is generated and seen by the client as text, so in history it is the token."""
    prompts = PromptProcessor.load(prompt_folder("qwen3")[0])
    think = prompts._tokenizer.convert_tokens_to_ids("<think>")
    text = "<think>\na cat</think>A cat.<|im_end|>"
    by_assistant = prompts.chat([Message("assistant", (text,))], add_generation_prompt=False)
    by_user = prompts.chat([Message("user", (text,))], add_generation_prompt=False)
    assert by_assistant.tokens.count(think) == 1
    assert by_user.tokens.count(think) == 0
    end = prompts._tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert by_assistant.tokens.count(end) == by_user.tokens.count(end) == 1


def test_a_normaliser_may_not_make_control_tokens(prompt_folder: Folder) -> None:
    prompts = PromptProcessor.load(prompt_folder("qwen3")[0])
    tokenizer = prompts._tokenizer
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.backend_tokenizer.add_tokens([AddedToken("<stop>", normalized=True)])
    with_normaliser = PromptProcessor(
        type("Config", (), {"get_text_config": lambda self: self, "vocab_size": 400})(),
        tokenizer,
        template=prompts._chat.template.source,
    )
    with pytest.raises(PromptError, match="normalised"):
        with_normaliser.chat([Message("user", ("<STOP>",))])
    assert with_normaliser.chat([Message("user", ("STOP",))]).tokens
    by_assistant = with_normaliser.chat([Message("assistant", ("<think>",))])
    assert tokenizer.convert_tokens_to_ids("<think>") in by_assistant.tokens


def test_threads_share_a_processor(prompt_folder: Folder) -> None:
    prompts = PromptProcessor.load(prompt_folder("llama")[0])

    def tokens(index: int) -> tuple[int, ...]:
        typed = "</s>" if index % 2 else ""
        return prompts.chat([Message("user", (f"{index} {'word ' * 200}{typed}",))]).tokens

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(tokens, range(24))) == [tokens(index) for index in range(24)]


def test_the_longest_token_wins_and_fragments_at_an_end_are_typed() -> None:
    marker = ControlTokens(frozenset({"<a>", "<a>b"}), frozenset({"<t>"})).marker(["anything"])
    marked = [
        marker.mark("x<a>b<a>"),
        marker.mark("y<t>", by_assistant=True),
        marker.mark("z<t><", more_follows=True),
        marker.mark("z<"),
    ]
    assert marker.split("|".join(marked)) == [
        Segment("x", False),
        Segment("<a>b", True),
        Segment("<a>", True),
        Segment("|y<t>|z", False),
        Segment("<t>", True),
        Segment("<", True),
        Segment("|z<", False),
    ]
