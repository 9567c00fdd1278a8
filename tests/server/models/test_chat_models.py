"""Tiny chat models: what tests of tools and reasoning rely on."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTIONS = ["Hi", "What is the weather in Paris?", "Tell me a story of a dog."]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
HISTORY = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "22", "tool_call_id": "1"},
]


def answers(folder, tools=None, behind=()):
    """The texts of greedy answers, each with its end."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    for question in QUESTIONS:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}, *behind],
            tools=tools,
            add_generation_prompt=True,
            return_tensors="pt",
        )["input_ids"]
        with torch.no_grad():
            whole = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=80, do_sample=False
            )
        yield tokenizer.decode(whole[0, prompt.shape[1] :])


@pytest.mark.parametrize("style", ["qwen3", "llama3"])
def test_an_answer_is_a_few_words_and_ends(chat_folder, style):
    end = {"qwen3": "<|im_end|>", "llama3": "<|eot_id|>"}[style]
    texts = [text for tools in ([], [TOOL]) for text in answers(chat_folder(style), tools)]
    assert all(text.endswith(end) and text.removesuffix(end).isalpha() for text in texts)
    assert len(set(texts)) > 1


@pytest.mark.parametrize(
    ("style", "first", "opens", "behind"),
    [
        ("qwen3", ["<think>"], "<think>", "\n\n"),
        ("qwen3", ["<tool_call>"], "<tool_call>", None),
        ("qwen3", ["<think>", "<tool_call>"], "<think>", "<tool_call>"),
        ("qwen3-thinking", [], " ", "\n\n"),
        ("llama3", ["<|python_tag|>"], "<|python_tag|>", None),
    ],
)
def test_an_answer_opens_as_told(chat_folder, style, first, opens, behind):
    for text in answers(chat_folder(style, *first)):
        assert text.startswith(opens)
        if behind is not None:
            reasoning, _, rest = text.partition("</think>")
            assert len(reasoning.removeprefix("<think>")) > 2
            assert rest.startswith(behind)


@pytest.mark.parametrize(
    ("style", "call"), [("qwen3", "<tool_call>"), ("llama3", "<|python_tag|>")]
)
def test_a_function_that_has_answered_is_not_called_again(chat_folder, style, call):
    folder = chat_folder(style, call)
    assert all(text.startswith(call) for text in answers(folder, [TOOL]))
    assert not any(text.startswith(call) for text in answers(folder, [TOOL], HISTORY[1:]))


def test_templates_write_what_the_published_ones_do(chat_folder):
    written = {
        style: AutoTokenizer.from_pretrained(chat_folder(style)).apply_chat_template(
            HISTORY, tools=[TOOL], add_generation_prompt=True, tokenize=False
        )
        for style in ("qwen3", "qwen3-thinking", "llama3")
    }
    for style, end in [("qwen3", ""), ("qwen3-thinking", "<think>\n")]:
        assert "<tools>\n" in written[style]
        assert written[style].endswith(
            '<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
            "<|im_end|>\n<|im_start|>user\n<tool_response>\n22\n</tool_response><|im_end|>\n"
            f"<|im_start|>assistant\n{end}"
        )
    assert written["llama3"].endswith(
        '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "f", "parameters": {"a": 1}}'
        '<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n"22"<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
