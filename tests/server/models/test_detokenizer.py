"""Streamed text is the decoded text, cut only between characters."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from saccade_server.demo import model_path
from saccade_server.models.conversation import Message
from saccade_server.models.detokenizer import (
    LONGEST_CONTEXT,
    ByteDetokenizer,
    Detokenizer,
    TokenBytes,
    TokenData,
)
from saccade_server.models.prompt import PromptProcessor

FAMILIES = ["llama", "qwen3"]
TEXT = " a red cat\n— Größe 漢字 😀👩‍👩‍👧 \u0301x\u200d"

Folder = Callable[[str], tuple[str, Any]]


@pytest.fixture(params=FAMILIES)
def prompts(request: pytest.FixtureRequest, prompt_folder: Folder) -> PromptProcessor:
    return PromptProcessor.load(prompt_folder(request.param)[0])


def encode(prompts: PromptProcessor, text: str) -> list[int]:
    return prompts._tokenizer(text, add_special_tokens=False)["input_ids"]


def stream(detokenizer: Detokenizer | ByteDetokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


def test_pieces_join_to_the_text_and_are_never_broken(prompts: PromptProcessor) -> None:
    pieces = stream(prompts.detokenizer(), encode(prompts, TEXT))
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces  # an emoji waited for its bytes


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12))
def test_any_text(prompts: PromptProcessor, text: str) -> None:
    prompt = encode(prompts, "the picture")
    whole = encode(prompts, "the picture" + text)
    if whole[: len(prompt)] != prompt:
        prompt = []
    pieces = stream(prompts.detokenizer(prompt), whole[len(prompt) :])
    want = prompts._backend.decode(whole)
    assert "".join(pieces) == (want.removeprefix("the picture") if prompt else want)
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_the_space_before_the_first_word_is_kept(prompts: PromptProcessor) -> None:
    prompt = prompts.chat([Message("user", ("a",))]).tokens
    assert "".join(stream(prompts.detokenizer(prompt), encode(prompts, " red")[-1:])) != ""
    whole = encode(prompts, "the picture is")
    pieces = stream(prompts.detokenizer(whole[:-1]), whole[-1:])
    assert prompts._backend.decode(whole[:-1]) + "".join(pieces) == "the picture is"


def test_a_character_begun_in_the_prompt_comes_whole(prompts: PromptProcessor) -> None:
    ids = encode(prompts, "cat 😀😀!")
    for cut in range(1, len(ids)):
        pieces = stream(prompts.detokenizer(ids[:cut]), ids[cut:])
        known = prompts._backend.decode(ids[:cut]).rstrip("\ufffd")
        assert known + "".join(pieces) == "cat 😀😀!"


def test_special_tokens_have_no_text(prompts: PromptProcessor) -> None:
    special = prompts.eos_token_ids[0]
    ids = encode(prompts, "a red cat")
    pieces = stream(prompts.detokenizer(), [special, *ids[:1], special, *ids[1:], special])
    assert "".join(pieces) == "a red cat"


def test_words_of_the_model_are_text(prompt_folder: Folder) -> None:
    prompts = PromptProcessor.load(prompt_folder("qwen3")[0])
    ids = encode(prompts, "<think>a</think>")
    assert "".join(stream(prompts.detokenizer(), ids)) == "<think>a</think>"


def test_broken_bytes_do_not_hold_the_stream_up(prompts: PromptProcessor) -> None:
    broken = encode(prompts, "😀")[-1]
    tail = encode(prompts, "the picture the picture")
    pieces = stream(prompts.detokenizer(), [broken] * (3 * LONGEST_CONTEXT) + tail)
    assert sum("\ufffd" in piece for piece in pieces) >= 3
    assert "".join(pieces).endswith("picture")


def byte_ids(prompts: PromptProcessor) -> dict[int, int]:
    """Token of each single byte that has one."""
    found = {}
    for token in range(prompts._backend.get_vocab_size()):
        exact = prompts.token_text(token)[1]
        if len(exact) == 1 and token not in prompts._encoder.special_ids:
            found[exact[0]] = token
    # A letter has two tokens where bytes are a fallback; only the fallback's is in a run.
    return found | {byte[0]: token for token, byte in prompts._bytes.fallback.items()}


@pytest.mark.parametrize(
    "data",
    [
        b"\x80" * 16 + b"abc",
        b"\x80" * 40,
        "\ufffd".encode() * 20,
        b"a" + b"\x80" * 15 + "é".encode(),
        "é".encode() + b"\x80",
        b"\xf0\x9f\x98" + "é".encode() + b"\xe2",
    ],
    ids=repr,
)
def test_broken_bytes_come_out_as_they_decode(prompts: PromptProcessor, data: bytes) -> None:
    ids = [byte_ids(prompts)[byte] for byte in data]
    text = "".join(stream(prompts.detokenizer(), ids))
    assert text == prompts._backend.decode(ids)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_tokens_come_out_as_they_decode(prompts: PromptProcessor, data: st.DataObject) -> None:
    single = byte_ids(prompts)
    broken = st.sampled_from([single[b] for b in (0x41, 0x80, 0xA9, 0xC3, 0xE2, 0x98, 0xF0, 0x9F)])
    whole = st.sampled_from([single[b] for b in sorted(single)])
    words = st.sampled_from(encode(prompts, TEXT + " the picture a cat"))
    ids = data.draw(st.lists(broken | whole | words, max_size=60))
    pieces = stream(prompts.detokenizer(), ids)
    assert "".join(pieces) == prompts._backend.decode(ids)


def test_long_broken_output_stays_cheap(prompts: PromptProcessor) -> None:
    detokenizer, broken = prompts.detokenizer(), byte_ids(prompts)[0x80]
    for _ in range(1000):
        detokenizer.push(broken)
        assert len(getattr(detokenizer, "_ids", ())) <= 2 * LONGEST_CONTEXT


@pytest.mark.parametrize("model", ["demo", "qwen3"])
def test_tokens_that_are_bytes_are_those_that_the_tokenizer_decodes(
    model: str, prompt_folder: Folder
) -> None:
    """Every token of the vocabulary, alone and between others; the tokenizer is the oracle."""
    folder = str(model_path()) if model == "demo" else prompt_folder(model)[0]
    backend = PromptProcessor.load(folder)._backend
    backend.add_tokens(["Größe é", "\ufffd", " ", "\n\n漢"])  # in the alphabet in part, or wholly
    assert TokenBytes(backend).byte_level
    data = TokenData(backend)
    size = backend.get_vocab_size()
    for token in range(size):
        assert data[token].decode(errors="replace") == backend.decode([token], False)
    random = Random(0)
    for _ in range(500):
        ids = [random.randrange(size + 1) for _ in range(random.randrange(1, 12))]
        prompt = random.randrange(len(ids))
        pieces = stream(ByteDetokenizer(data), ids)
        assert "".join(pieces) == backend.decode(ids, False)
        known = "".join(stream(ByteDetokenizer(data), ids[:prompt])[:-1])
        later = stream(ByteDetokenizer(data, ids[:prompt]), ids[prompt:])
        assert known + "".join(later) == backend.decode(ids, False)


def test_only_decoders_of_bytes_alone_are_taken_for_such(prompt_folder: Folder) -> None:
    assert not TokenBytes(PromptProcessor.load(prompt_folder("llama")[0])._backend).byte_level
    backend = PromptProcessor.load(prompt_folder("qwen3")[0])._backend
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    assert not TokenBytes(backend).byte_level


def test_flush_gives_what_is_left(prompts: PromptProcessor) -> None:
    detokenizer = prompts.detokenizer()
    pieces = [detokenizer.push(token) for token in encode(prompts, "a😀")[:-1]]
    assert "".join(pieces).strip() == "a"
    assert set(detokenizer.flush()) == {"\ufffd"}
    assert detokenizer.flush() == ""


def test_ids_without_a_token_have_no_text(prompts: PromptProcessor) -> None:
    ids = encode(prompts, "a cat")
    unknown = [10**6] * (2 * LONGEST_CONTEXT)
    assert "".join(stream(prompts.detokenizer(), [*ids[:1], *unknown, *ids[1:]])) == "a cat"
    assert prompts.token_text(10**6) == ("", b"")


def test_token_bytes_join_to_the_text(prompts: PromptProcessor) -> None:
    ids = encode(prompts, TEXT)
    joined = b"".join(prompts.token_text(token)[1] for token in ids)
    assert joined.decode().endswith(TEXT)
    for token in ids:
        text, exact = prompts.token_text(token)
        assert text == exact.decode(errors="replace")
    special = prompts.eos_token_ids[0]
    assert prompts.token_text(special)[0] in ("</s>", "<|im_end|>")
