"""Why a request is refused that fits the document: what JSON Schema cannot say, or says in no form
that a reader would understand.
"""

import re

BESIDE = "what another field, or another part of the prompt, would have to be"
ORDER = "an order of numbers"
MODEL = "the sizes of the served model, or its chat template"
LIMIT = "what an operator allows"
ONE = "an integer that is written as 1.0"
FOREIGN = "fields of other servers, which are refused where all others are ignored"
GRAMMAR = "what a schema, a regular expression or a grammar means"
BYTES = "what is inside of a file or a text"

CODES = {
    "artifact_invalid": BYTES,
    "context_length_exceeded": MODEL,
    "grammar_too_large": LIMIT,
    "intervention_artifact_mismatch": BYTES,
    "intervention_conflict": BESIDE,
    "intervention_head_out_of_range": MODEL,
    "intervention_layer_out_of_range": MODEL,
    "intervention_requires_image": BESIDE,
    "intervention_target_not_found": BESIDE,
    "invalid_grammar": GRAMMAR,
    "invalid_prompt": BESIDE,
    "trace_out_of_range": MODEL,
    "trace_requires_image": BESIDE,
    "trace_undefined": BESIDE,
    "unsupported_grammar": GRAMMAR,
    "unsupported_parameter": FOREIGN,
}
"""Codes of errors that say all about the reason."""

MESSAGES: tuple[tuple[str, str], ...] = (
    (r"^Give a prompt or messages|^Give messages or prompt_tokens", BESIDE),
    (r"^Only user messages may hold images|the prompt has none\.?$", BESIDE),
    (r"is required|has at least one part|only assistants call tools|is for messages\.$", BESIDE),
    (r"both say what|says how JSON is|^With ignore_eos|with max_\w+ 0 there|bytes at most", BESIDE),
    (r"^tool_choice needs tools|has the name .* already\.$", BESIDE),
    (r"^stream_options needs|^top_logprobs needs|^With max_\w+ 0 nothing", BESIDE),
    (r"name either|disagree; give one|is given twice|names the \w+ already", BESIDE),
    (r"^the rows of a grid have|have a weight each", BESIDE),
    (r"name the heads|name an artifact|name something|name what|needs low or high", BESIDE),
    (r"has no use for|excludes|exclude each other|min_tokens must be", BESIDE),
    (r"a range has its first number|a span is \[start, end\)|ranges ascend", ORDER),
    (r"a box is \[left|far is not below near|the runs have|named twice", ORDER),
    (r"the model has|hidden size is|a layer has|^Token ids go from", MODEL),
    (r"^n may be|may be \d+ at most|at most \d+", LIMIT),
    (r"must be a whole number", ONE),
    (r"are given as the top-level field", FOREIGN),
    (
        r"^the artifact (is of kind|has)|^The text (is not valid JSON|must be|holds|is nested)",
        BYTES,
    ),
)
"""Patterns of messages where the code says less."""


def reason(code: str, message: str) -> str | None:
    """What the schema would have to know; None if it could have said it."""
    found = (why for pattern, why in MESSAGES if re.search(pattern, message))
    return CODES.get(code) or next(found, None)
