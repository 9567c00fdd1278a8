"""Which models think is told by their templates, and how far a prompt is by its end."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import Qwen3Config

from saccade_server.models.conversation import Message
from saccade_server.models.prompt import PromptProcessor
from saccade_server.models.reasoning import Markers, Thought
from saccade_testing import templates
from saccade_testing.processors import PromptFolder

ASKED = Message("user", ("Why?",))
SILENT = {"enable_thinking": False}
Model = Callable[..., PromptProcessor]


@pytest.fixture
def model(prompt_folder: PromptFolder) -> Model:
    """Make a text model of any template and family of tokenizer, with more special tokens."""

    def make(source: str, family: str = "qwen3", special: tuple[str, ...] = ()) -> PromptProcessor:
        tokenizer: Any = prompt_folder(family)[1]
        if special:
            tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
        config = Qwen3Config(vocab_size=len(tokenizer))
        return PromptProcessor(config, tokenizer, template=source)

    return make


@pytest.mark.parametrize("source", [templates.THOUGHTS, templates.BEGUN, templates.STRIPPED])
def test_markers_that_are_tokens(model: Model, source: str) -> None:
    prompts = model(source)
    markers = prompts.markers
    assert markers is not None
    assert markers.tokens is not None
    assert (markers.opens, markers.closes) == ("<think>", "</think>")
    assert [prompts.token_name(token) for token in markers.tokens] == ["<think>", "</think>"]
    assert not markers.special


def test_markers_that_are_text(model: Model) -> None:
    """The template names both; a template that names one needs a token for the other."""
    found = model(templates.THOUGHTS, "llama").markers
    assert found == Markers("<think>", "</think>")
    assert model(templates.STRIPPED, "llama").markers is None


def test_markers_that_are_special_tokens(model: Model) -> None:
    found = model(templates.BRACKETS, special=("[THINK]", "[/THINK]")).markers
    assert found is not None
    assert found.special
    assert found.tokens is not None
    assert (found.opens, found.closes) == ("[THINK]", "[/THINK]")


@pytest.mark.parametrize(
    "source", [templates.NAMING, templates.ALTERNATING, "{# <think></think> #}x", "{% if %}", None]
)
def test_a_template_that_speaks_of_no_markers(model: Model, source: str) -> None:
    """Its tokenizer has their tokens all the same."""
    prompts = model(source)
    assert prompts.markers is None
    if source in (templates.NAMING, templates.ALTERNATING):
        assert prompts.chat([ASKED]).thought is None


def test_of_several_pairs_the_one_that_the_template_writes_counts(model: Model) -> None:
    shown = "Put <thought>this</thought> here. " + templates.THOUGHTS
    found = model(shown).markers
    assert found is not None
    assert found.opens == "<think>"
    written = templates.THOUGHTS.replace("think>", "seed:think>")
    found = model("<think></think>" + written).markers
    assert found == Markers("<seed:think>", "</seed:think>")


@pytest.mark.parametrize("family", ["qwen3", "llama"])  # markers that are tokens, and texts
@pytest.mark.parametrize(
    ("source", "options", "thought"),
    [
        (templates.THOUGHTS, {}, Thought.FREE),
        (templates.THOUGHTS, {"variables": SILENT}, Thought.OVER),
        (templates.THOUGHTS, {"add_generation_prompt": False}, Thought.FREE),
        (templates.BEGUN, {}, Thought.BEGUN),
        (templates.BEGUN, {"add_generation_prompt": False}, Thought.FREE),
    ],
)
def test_the_end_of_a_prompt(
    model: Model, family: str, source: str, options: dict[str, Any], thought: Thought
) -> None:
    prompts = model(source, family)
    assert prompts.chat([ASKED], **options).thought is thought
    unclosed = [ASKED, Message("assistant", ("<think>\nHm",)), ASKED]
    assert prompts.chat(unclosed, **options).thought is thought


HISTORY = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
BEGINNINGS = {
    "<think>": Thought.BEGUN,
    "</think>": Thought.OVER,  # a switch that is off writes the closing marker alone
    "<think>\n<budget>0": Thought.BEGUN,
    "<think></think>\n": Thought.OVER,
    "{{ '' if '</think>' }}": Thought.FREE,
}


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("otherwise", ["", "<end>"])
@pytest.mark.parametrize("begins", BEGINNINGS)
def test_what_a_template_begins_an_answer_with(
    model: Model, family: str, begins: str, otherwise: str
) -> None:
    """Whatever stands in the history, and whether or not the prompt would be longer without."""
    begun = f"{{% if add_generation_prompt %}}[assistant]{begins}{{% else %}}{otherwise}"
    prompts = model(
        f"{{% if '<think></think>' %}}{{% endif %}}{HISTORY}{begun}{{% endif %}}", family
    )
    for said in ("a", "<think>", "<think>a</think>b", "a</think>"):
        asked = [ASKED, Message("assistant", (said,)), ASKED]
        assert prompts.chat(asked).thought is BEGINNINGS[begins]


def test_a_template_that_must_begin_an_answer(model: Model) -> None:
    fails = "{% if not add_generation_prompt %}{{ raise_exception('x') }}{% endif %}"
    prompts = model(f"{HISTORY}{fails}<think>\n{{{{ '</think>' and '' }}}}")
    assert prompts.chat([ASKED]).thought is Thought.BEGUN


@pytest.mark.parametrize("typed", ["<think>", "</think>", "<think> \n"])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_what_a_user_types_begins_nothing(model: Model, family: str, typed: str) -> None:
    bare = "{% if '</think>' in '' %}<think>{% endif %}{{ messages[-1].content }}"
    prompts = model(bare, family)
    assert prompts.markers is not None
    assert prompts.chat([Message("user", (f"Why? {typed}",))]).thought is Thought.FREE


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize(
    ("said", "thought"),
    [
        ("Because", Thought.OVER),
        ("<think>\nHm", Thought.BEGUN),
        ("<think>", Thought.BEGUN),
        ("<think>\nHm\n</think>\n\nBecause", Thought.OVER),
        ("</think>a<think>b", Thought.BEGUN),
    ],
)
def test_a_message_continued(model: Model, family: str, said: str, thought: Thought) -> None:
    prompts = model(templates.THOUGHTS, family)
    asked = [ASKED, Message("assistant", (said,))]
    prompt = prompts.chat(asked, continue_final_message=True)
    assert prompt.thought is thought
    if family == "qwen3" and thought is Thought.BEGUN:
        assert prompts.markers is not None
        assert prompts.markers.tokens is not None
        opens, closes = prompts.markers.tokens
        last = max(at for at, token in enumerate(prompt.tokens) if token in (opens, closes))
        assert prompt.tokens[last] == opens


def test_no_message_holds_special_markers(model: Model) -> None:
    prompts = model(templates.BRACKETS, special=("[THINK]", "[/THINK]"))
    asked = [ASKED, Message("assistant", ("[THINK]Hm",))]
    assert prompts.chat(asked, continue_final_message=True).thought is Thought.OVER


def test_a_plain_prompt_is_not_looked_at(model: Model) -> None:
    assert model(templates.BEGUN).completion("<think>").thought is None


def test_what_was_told_apart_comes_back_as_it_was(model: Model) -> None:
    """What an answer's message says of itself makes the tokens that the model drew."""
    prompts = model(templates.THOUGHTS)
    asked = prompts.chat([ASKED])
    drawn = prompts.behind("<think>\nHm.\n</think>\n\nBecause.", typed=False)
    said = Message("assistant", ("Because.",), reasoning="Hm.")
    whole = prompts.chat([ASKED, said], continue_final_message=True)
    assert [*whole.tokens] == [*asked.tokens, *drawn]


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_the_detokenizer_writes_what_it_is_told(prompt_folder: PromptFolder, family: str) -> None:
    prompts = PromptProcessor.load(prompt_folder(family)[0])
    special = prompts.eos_token_ids[0]
    ids = prompts.behind("a red cat", typed=False)
    emoji = prompts.behind("😀", typed=False)
    shown = prompts.detokenizer((), {special: "\udc01"})
    pieces = [shown.push(token) for token in (*ids, special, *emoji[:-1], special, *ids)]
    assert "".join(pieces) + shown.flush() == "".join(
        [
            "a red cat",
            "\udc01",
            *["\ufffd"] * (1 if family == "qwen3" else 3),
            "\udc01",
            "a red cat",
        ]
    )
