"""Where a prompt ends and a continuation begins, by tokenizers of both kinds."""

from typing import Any

import pytest

from saccade_server.demo import model_path
from saccade_server.models.continuations import TextPrompt, lead
from saccade_server.models.conversation import Message
from saccade_server.models.prompt import PromptProcessor


@pytest.fixture(scope="module")
def prompts() -> PromptProcessor:
    return PromptProcessor.load(str(model_path()))


def encode_pair(prompts: PromptProcessor, context: str, continuation: str) -> tuple[Any, Any]:
    """The harness's rule, written down again."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        continuation = context[-spaces:] + continuation
        context = context[:-spaces]
    whole = prompts.tokens(context + continuation)
    start = len(prompts.tokens(context))
    return whole[:start], whole[start:]


@pytest.mark.parametrize(
    ("context", "continuation"),
    [
        ("There is a red", " circle"),
        ("There is a red ", "circle"),
        ("There is a red \n ", " circle."),
        ("There is a r", "ed circle"),
        ("There is a ci", "rcle"),
        ("Caf", "\u00e9 \u4f60\u597d"),
        ("a", "\n\n"),
    ],
)
@pytest.mark.parametrize("special", [True, False])
def test_a_text_is_cut_where_harnesses_cut_it(
    prompts: PromptProcessor, context: str, continuation: str, special: bool
) -> None:
    found = TextPrompt.of(prompts, context, special)
    own = found.continued(continuation)
    before, behind = encode_pair(prompts, context, continuation)
    if not special:
        before = before[1:]
    prompt = own.prompt or found.prompt
    assert [*prompt.tokens] == before
    assert [*own.tokens] == behind
    assert len(prompt.offsets) == len(prompt.tokens)
    assert (
        prompt.text == (context.rstrip() + continuation)[: len(prompt.text)] or own.prompt is None
    )


def test_a_continuation_may_melt_into_the_prompt(prompts: PromptProcessor) -> None:
    """Then nothing is left of it, and the prompt is another one."""
    whole = prompts.tokens(" circle", add_special_tokens=False)
    assert len(whole) == 1
    found = TextPrompt.of(prompts, "There is a circl", True)
    own = found.continued("e")
    assert len(prompts.tokens("There is a circle")) <= len(found.prompt.tokens)
    assert own.tokens == ()


def test_a_prompt_of_tokens_behind_white_space_keeps_it(prompts: PromptProcessor) -> None:
    found = TextPrompt.of(prompts, "There is ", True)
    assert [*found.prompt.tokens] == prompts.tokens("There is")
    assert found.spaced is not None
    assert [*found.spaced.tokens] == prompts.tokens("There is ")
    assert TextPrompt.of(prompts, "There is", True).spaced is None


def test_no_control_token_is_read_in_what_an_assistant_says(prompts: PromptProcessor) -> None:
    name = "</s>"
    token = prompts.special_token(name)
    assert prompts.behind(name, typed=False) == [token]
    assert token not in prompts.behind(name, typed=True)
    assert prompts.behind("No.", typed=True) == prompts.tokens("No.", add_special_tokens=False)


TEMPLATES = {
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}": " ",
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}": "",
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>{% endif %}": "",
}


@pytest.mark.parametrize(("template", "wanted"), TEMPLATES.items())
def test_white_space_before_an_answer_is_the_template_s(template: str, wanted: str) -> None:
    from transformers import AutoConfig, AutoTokenizer

    folder = str(model_path())
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompts = PromptProcessor(config, tokenizer, template=template)
    assert lead(prompts) == wanted
    asked = [Message("user", ("Hi",)), Message("assistant", ("Yes",))]
    begun = prompts.chat(asked[:1]).text
    shown = prompts.chat(asked, continue_final_message=True).text
    assert (begun + wanted + "Yes" == shown) == ("think" not in template)
