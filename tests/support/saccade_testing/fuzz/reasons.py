"""Why a request is refused that fits the document: what JSON Schema cannot say, or says in no form
that a reader would understand.
"""

BESIDE = "what another field, or another part of the prompt, would have to be"
ORDER = "an order of numbers"
MODEL = "the sizes of the served model, or its chat template"
LIMIT = "what an operator allows"
ONE = "an integer that is written as 1.0"
FOREIGN = "fields of other servers, which are refused where all others are ignored"
BYTES = "what is inside of a file or a text"

REASONS: tuple[tuple[str, str], ...] = (
    (r"^Give a prompt or messages|^Give messages or prompt_tokens", BESIDE),
    (r"the prompt has none\.?$|^Only user messages may hold images", BESIDE),
    (r"is required|has at least one part|only assistants call tools|is for messages\.$", BESIDE),
    (r"^stream_options needs|^top_logprobs needs|^With max_\w+ 0 nothing", BESIDE),
    (r"name either|disagree; give one|is given twice", BESIDE),
    (r"name the heads|name an artifact|name something|name what|needs low or high", BESIDE),
    (r"has no use for|excludes|exclude each other|may be of the answer only", BESIDE),
    (r"a range has its first number|a span is \[start, end\)|ranges ascend", ORDER),
    (r"a box is \[left|far is not below near|the runs have", ORDER),
    (
        r"min_tokens must be|more were asked for|with its answer it may have|^The prompt is empty",
        BESIDE,
    ),
    (r"is named twice|are named twice", ORDER),
    (r"there is no (layer|head|image)|the model has|hidden size is|a layer has", MODEL),
    (r"^There is no token|The chat template has no variable", MODEL),
    (r"^n may be|may be \d+ at most|at most \d+", LIMIT),
    (r"must be a whole number", ONE),
    (r"the prompt does not contain", BESIDE),
    (r"^the artifact (is of kind|has)", BYTES),
    (r"is not supported by this server|are given as the top-level field", FOREIGN),
    (r"not a safetensors file|^The text is not valid JSON", BYTES),
)
"""A pattern of the message, and what the schema would have to know."""
