"""Weights under which the kind of the last token says which kind is likely next.

The first entries of a hidden state say of which kind the last token is, the next ones how far into
a run of words it is. Layers write to one of the latter, and to the rest, which is random as usual:
so the whole prompt says which words a run has. A head of the first layer looks for a
function's result: behind one, that function is not called again.
"""

import re
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import torch


class Kind(IntEnum):
    """Of a token, by its text."""

    QUOTE = 0
    WORD = 1
    THOUGHT = 2
    DIGIT = 3
    COMMA = 4
    OPEN = 5
    CLOSE = 6
    LINE = 7
    LINES = 8
    THINK = 9
    THOUGHT_OUT = 10
    FIRST = 11
    END = 12
    MARK = 13
    OTHER = 14


RANK = len(Kind)
"""Layers write here, and the likeliest next word goes by it."""
PURE = RANK + 1
"""The same without what layers write: by it a run ends."""
RESULT = RANK + 2
"""Marks a token that opens a function's result."""
ANSWERED = RANK + 3
"""Says that there was one: written by that head."""
RESERVED = RANK + 4
KIND_SIZE, RANK_SIZE, RESULT_SIZE, ANSWERED_SIZE = 4.0, 2.0, 4.0, 2.0
"""In a hidden state, whose random entries are about a half."""
RESULTS = ("<tool_response>", "ipython")
CALLED = "get_weather"
"""The function that is called once."""

STEP = 0.3
"""Ranks go from 0 to 1; so much higher than the last word's is the likeliest next one's."""
SHARP = 20.0
"""Of the parabola around it, ``-SHARP * (next - last - STEP)**2``."""
LAST = 0.65
"""The rank from which on a run rather ends."""
SLOPE = 80.0
"""By which what ends a run gets likelier with the last word's rank."""
LAYERS = 0.25
"""Of weights that write, in those of the model as it was made: kinds stay as large as they are."""
JITTER = 0.08
"""Of weights that write to a rank, in those of others."""
RANDOM = 0.8
"""The standard deviation of the random part of a logit."""

NEVER, LOW, SOME, HIGH, TOP = -16.0, -10.0, 0.0, 6.0, 12.0
"""Logits far enough apart that a temperature of one mostly keeps their order."""

CLOSERS = (Kind.QUOTE, Kind.END, Kind.THOUGHT_OUT, Kind.MARK)
"""What ends a run. A quote is likelier than other marks, which are letters of a string as well."""

OPENINGS = {Kind.WORD: HIGH, Kind.QUOTE: SOME, Kind.DIGIT: SOME, Kind.OPEN: SOME}
HABITS: dict[Kind, dict[Kind, float]] = {
    Kind.QUOTE: {Kind.WORD: TOP, Kind.DIGIT: HIGH, Kind.CLOSE: SOME, Kind.COMMA: -4},
    Kind.WORD: {
        Kind.WORD: TOP,
        Kind.QUOTE: TOP,
        Kind.END: TOP + 4,
        Kind.MARK: HIGH,
        Kind.CLOSE: -4,
        Kind.COMMA: LOW,
    },
    Kind.THOUGHT: {Kind.THOUGHT: TOP, Kind.THOUGHT_OUT: TOP},
    Kind.DIGIT: {
        Kind.QUOTE: TOP,
        Kind.END: TOP,
        Kind.CLOSE: HIGH,
        Kind.COMMA: SOME,
        Kind.DIGIT: -7,
    },
    Kind.COMMA: {Kind.QUOTE: TOP, Kind.DIGIT: HIGH, Kind.WORD: SOME, Kind.OPEN: -4},
    Kind.OPEN: {Kind.QUOTE: TOP, Kind.DIGIT: HIGH, Kind.CLOSE: SOME, Kind.WORD: SOME},
    Kind.CLOSE: {Kind.END: TOP + 4, Kind.QUOTE: TOP, Kind.CLOSE: HIGH, Kind.COMMA: SOME},
    Kind.LINE: OPENINGS,
    Kind.LINES: OPENINGS,
    Kind.THINK: {Kind.THOUGHT: TOP},
    Kind.THOUGHT_OUT: {Kind.LINES: 2 * TOP, **OPENINGS},
    Kind.FIRST: OPENINGS,
    Kind.END: OPENINGS,
    Kind.MARK: {Kind.QUOTE: HIGH, Kind.END: HIGH, Kind.WORD: HIGH, Kind.DIGIT: SOME},
    Kind.OTHER: {Kind.QUOTE: HIGH, Kind.END: HIGH, Kind.WORD: SOME},
}
"""Rows by the token before; what a row does not name is LOW, an end SOME."""


def likely(
    model: Any, texts: Sequence[str], end: str, first: Sequence[str] = (), thinking: bool = False
) -> None:
    """Give a random ``model`` whose tokens are ``texts`` habits.

    Its answers open with the tokens of ``first``, and close with ``end``. With ``thinking`` a
    prompt that ends with one newline has opened the reasoning already.
    """
    following = [_next(text, end) for text in texts]
    runs = torch.tensor([_run(text) is not None for text in texts])
    ranks = torch.rand(len(texts)) * runs
    results = [index for index, text in enumerate(texts) if text in RESULTS]
    _embed(model, [_last(text, end) for text in texts], ranks, results)
    _look(model.model.layers[0].self_attn)
    kinds, spread = _seen(model, len(texts))
    table = torch.stack([_logits(kind, following, ranks) for kind in Kind])
    for token in first:
        thought = token == "<think>"
        rows = [Kind.LINES, Kind.THOUGHT_OUT] if not thought else []
        rows += [Kind.LINE] if thought or "<think>" not in first else []
        table[rows, texts.index(token)] = 2 * TOP
    if thinking:
        table[Kind.LINE] = table[Kind.THINK]
    head = model.lm_head.weight.data
    head[:, RESERVED:].normal_(0, RANDOM / spread)
    head[:, :RESERVED] = 0
    head[:, : len(Kind)] = NEVER / kinds
    head[: len(texts), : len(Kind)] = table.T / kinds
    closers = [index for index, kind in enumerate(following) if kind in CLOSERS]
    head[: len(texts), RANK] = 2 * SHARP * ranks * KIND_SIZE / RANK_SIZE / kinds
    head[closers, PURE] = SLOPE * KIND_SIZE / RANK_SIZE / kinds
    calls = {*first} - {"<think>"}
    again = [index for index, text in enumerate(texts) if text in calls or _names(text)]
    head[again, ANSWERED] = 4 * NEVER * KIND_SIZE / ANSWERED_SIZE / kinds


def _names(text: str) -> bool:
    return bool(text) and CALLED.startswith(text)


def _next(text: str, end: str) -> Kind:
    """What a token is to those before it."""
    named = {"\n\n": Kind.LINES, "</think>": Kind.THOUGHT_OUT, end: Kind.END}
    if text in named:
        return named[text]
    whole = len(text) == 1 or re.fullmatch(r'[}\]]+|[{[]"', text) or _run(text) is not None
    return _marked(text, text[:1]) if whole else Kind.OTHER


def _last(text: str, end: str) -> Kind:
    """What a token is to those behind it."""
    named = {"\n": Kind.LINE, "\n\n": Kind.LINES, "<think>": Kind.THINK, end: Kind.END}
    named |= {"</think>": Kind.THOUGHT_OUT, "</tool_call>": Kind.CLOSE}
    named |= dict.fromkeys(("<tool_call>", "<|python_tag|>"), Kind.FIRST)
    return named.get(text) or _marked(text, text[-1:])


def _run(text: str) -> Kind | None:
    """Of a word: answers have those without a space, thoughts those with one."""
    if re.fullmatch("[A-Za-z]{2,}", text):
        return Kind.WORD
    return Kind.THOUGHT if re.fullmatch(" [a-z]{2,}", text) else None


def _marked(text: str, letter: str) -> Kind:
    run = _run(text)
    if run is not None:
        return run
    marks = {'"': Kind.QUOTE, ",": Kind.COMMA, ":": Kind.COMMA}
    marks |= {"{": Kind.OPEN, "[": Kind.OPEN, "}": Kind.CLOSE, "]": Kind.CLOSE}
    marks |= dict.fromkeys("0123456789", Kind.DIGIT) | dict.fromkeys(
        "!#$%&'()*+-./;=?@_", Kind.MARK
    )
    return marks.get(letter, Kind.OTHER)


def _logits(row: Kind, kinds: Sequence[Kind], ranks: torch.Tensor) -> torch.Tensor:
    """Of every token behind one of ``row`` with rank 0."""
    habit = {Kind.END: SOME, Kind.MARK: NEVER, Kind.OTHER: NEVER} | HABITS[row]
    logits = torch.tensor([habit.get(kind, LOW) for kind in kinds])
    # The parabola without what is the same for all words; the slopes add the rest.
    logits += SHARP * (2 * STEP * ranks - ranks**2)
    if row in (Kind.WORD, Kind.THOUGHT):
        closers = [index for index, kind in enumerate(kinds) if kind in CLOSERS]
        logits[closers] += SHARP * (LAST + STEP) ** 2 - SLOPE * LAST
    return logits


def _embed(model: Any, kinds: Sequence[Kind], ranks: torch.Tensor, results: Sequence[int]) -> None:
    embedding = model.get_input_embeddings().weight.data
    embedding.normal_(0, 0.5)
    embedding[:, :RESERVED] = 0
    embedding[torch.arange(len(kinds)), torch.tensor(kinds)] = KIND_SIZE
    embedding[: len(kinds), [RANK, PURE]] = RANK_SIZE * ranks[:, None]
    embedding[results, RESULT] = RESULT_SIZE
    for layer in model.model.layers:
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            weight = projection.weight.data
            weight *= LAYERS
            weight[:RESERVED] = 0
            weight[RANK].normal_(0, JITTER * weight[RESERVED:].std())


def _look(attention: Any) -> None:
    """Let the first head attend to results alone, and write that there are any.

    Its queries and keys lie in a plane that hardly turns with the distance. Where there is no
    result all keys and values are zero.
    """
    size = attention.head_dim
    slow = size // 2 - 1
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        projection.weight.data[:size] = 0
    attention.q_proj.weight.data[slow, : len(Kind)] = 8.0
    attention.k_proj.weight.data[slow, RESULT] = 8.0
    attention.v_proj.weight.data[0, RESULT] = 1.0
    if hasattr(attention, "q_norm"):
        attention.q_norm.weight.data[slow] = 8.0
    attention.o_proj.weight.data[:, :size] = 0
    attention.o_proj.weight.data[ANSWERED, 0] = ANSWERED_SIZE / RESULT_SIZE


def _seen(model: Any, tokens: int) -> tuple[float, float]:
    """How large a kind, and how spread the random rest, arrives at the output layer."""
    ids = torch.randint(tokens, (8, 64))
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state
    rest = hidden[..., RESERVED:]
    kinds = hidden[..., : len(Kind)].amax(-1).mean()
    return float(kinds), float(rest.norm(dim=-1).mean())
