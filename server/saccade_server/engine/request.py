"""What crosses the line between the API process and the engine; plain data, no torch.

Encoded with msgspec (MessagePack). Arrays travel as raw bytes with dtype and shape, so nothing on
the wire can name code.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cached_property

import msgspec
import numpy as np
from numpy.typing import NDArray

from saccade_interventions.plan import Plan
from saccade_interventions.rules import AnyFinding
from saccade_server.engine.arrays import Array as Array
from saccade_server.engine.counts import FormCount, Histogram
from saccade_server.engine.origin import UNKNOWN, Origin
from saccade_server.engine.timing import Timing
from saccade_server.engine.traces.data import Trace, TracePiece
from saccade_server.grammars.grammar import Grammar, GrammarCount

EMPTY = Array("|u1", (0,), b"")
"""Stands for pixels that are elsewhere."""


class ImageInput(msgspec.Struct, frozen=True):
    """One preprocessed view of an image and where its features go.

    ``pixels`` and ``grid`` are what the family's tower takes, see
    :class:`saccade_server.models.views.View`.
    """

    digest: str  # SHA-256 of pixels and grid: the key of the feature cache
    start: int  # first prompt position of its features
    length: int
    pixels: Array
    grid: tuple[int, int, int] | None = None


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are drawn; the names and meanings are the OpenAI API's and vLLM's."""

    max_tokens: int  # given ones count; 0: nothing is drawn
    min_tokens: int = 0  # until then neither end-of-sequence nor stop tokens can be drawn
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: dict[int, float] = msgspec.field(default_factory=dict)
    logprobs: int | None = None  # number of alternatives per token; None: no logprobs
    forced: tuple[int, ...] = ()  # the first tokens of the answer, to learn their log-probabilities


class BranchInput(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A branch of a sequence: another view of its prompt, followed by the same generated tokens.

    It exists because a rule of the sequence's plan asks for it, or its trace: that one has a
    ``trace`` of its own, of what is compared, and comes last. ``measures``: it is needed until the
    last prompt row only; otherwise to the end.
    """

    tokens: tuple[int, ...]
    images: tuple[ImageInput, ...] = ()
    plan: Plan | None = None
    measures: bool = False
    trace: Trace | None = None

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """The tokens as an array, read-only."""
        return _ids(self.tokens)


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One sequence to generate. ``cache_salt``: it shares cache pages with equal salts only.

    ``branches`` are those that the plan's rules need, in their order (Needs.branches), and behind
    them one that the trace needs. ``given``
    are the first tokens of the answer, known from the start: they are rows of the answer to every
    edit, and computed in chunks like a prompt's. Plans that act where a token is drawn exclude
    them (:func:`~saccade_server.engine.limits.acts_on_draws`): there they are forced, one by one.
    ``trace``: what it wants to see of its rows, which changes nothing. ``grammar``: what its answer
    must be; of branches their leader's holds. An answer under a grammar ends with an end token
    whatever ``ignore_eos`` says, and none of its tokens is given or forced. ``priority`` is vLLM's:
    the lower goes first. ``owner`` is whose request it is, for fairness among those who wait, and
    ``origin`` what the log calls it.
    ``deadline``: when it need not begin any more, in seconds of the machine's monotonic clock.
    """

    request_id: str
    tokens: tuple[int, ...]
    sampling: SamplingParams
    images: tuple[ImageInput, ...] = ()
    plan: Plan | None = None
    branches: tuple[BranchInput, ...] = ()
    cache_salt: str = ""
    given: tuple[int, ...] = ()
    trace: Trace | None = None
    grammar: Grammar | None = None
    priority: int = 0
    owner: str = ""
    deadline: float | None = None
    origin: Origin = UNKNOWN

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """The tokens as an array, read-only."""
        return _ids(self.tokens)

    @cached_property
    def computed_from(self) -> int | None:
        """The first position whose row must be computed; None: any may come from the cache."""
        return None if self.trace is None else self.trace.first_row

    @cached_property
    def distinct(self) -> frozenset[int]:
        """Which tokens the prompt has."""
        return frozenset(self.tokens)

    @property
    def all_images(self) -> tuple[ImageInput, ...]:
        """The images of the sequence and of its branches."""
        return (*self.images, *(image for branch in self.branches for image in branch.images))


def _ids(tokens: tuple[int, ...]) -> NDArray[np.int64]:
    made = np.fromiter(tokens, np.int64, len(tokens))
    made.setflags(write=False)
    return made


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"
    LATE = "late"  # its deadline passed while it waited


class TokenLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities at one generated position, of the model's own distribution."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class SiteCount(msgspec.Struct, frozen=True):
    """Query rows whose class masses changed, in one (layer, head)."""

    layer: int
    head: int
    rows: int


class Counter(msgspec.Struct, frozen=True):
    """How often a rule of a plan did something; ``source`` is the place of its intervention."""

    source: int
    name: str
    value: int


class Receipt(msgspec.Struct, frozen=True):
    """What really ran for a plan, counted where it ran.

    ``rows`` counts the distinct query rows of each phase, those of a shared prefix included (it
    was computed under the same programs). ``moved`` lists the sites of mass edits that changed
    a row: each row once, however often it was computed. ``counters`` say what the plan's rules did,
    ``findings`` what they found out.
    """

    rows: dict[str, int]
    moved: tuple[SiteCount, ...] = ()
    counters: tuple[Counter, ...] = ()
    findings: tuple[AnyFinding, ...] = ()


class Failure(StrEnum):
    """What a sequence that ends in an error died of, where a client can do something about it."""

    GRAMMAR_REFUSED = "grammar_refused"  # it cannot be compiled within the limits
    GRAMMAR_FAILED = "grammar_failed"  # it came to its limits, or to a dead end, inside the answer
    GRAMMAR_STUCK = "grammar_stuck"  # it allows ends alone, and the request has them held back


NOT_FINITE = "the model gave logits that are not finite"
"""The error of a sequence that nothing can be drawn for."""


class EngineOutput(msgspec.Struct, frozen=True, kw_only=True):
    """News of one sequence after one step.

    With ``FinishReason.STOP`` the last of ``tokens`` is the token that stopped the sequence.
    """

    request_id: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None
    diverged: bool = False  # the error: under a plan the model's numbers overflowed
    failure: Failure | None = None  # which kind of error it is, if it is one of these
    cached_tokens: int = 0  # prompt tokens served from the prefix cache
    receipt: Receipt | None = None  # on the last output of a sequence with a plan
    trace: tuple[TracePiece, ...] = ()  # what steps since the last output have read
    grammar: GrammarCount | None = None  # on the last output of a sequence with a grammar
    holds: bytes = b""  # likewise: how it held each token, see Hold
    timing: Timing | None = None  # on the last output of a sequence that was queued


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The loaded model and the engine's limits, announced once at start.

    ``fingerprint``: see :func:`saccade_server.models.fingerprint.fingerprint`; empty if it was not
    asked for.
    """

    model: str
    family: str
    device: str
    dtype: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    max_model_len: int
    max_num_seqs: int
    max_waiting: int
    max_pixel_bytes: int = 2 * 2**30
    cache_tokens: int
    max_programs: int
    max_per_head_classes: int = 8
    max_batched_tokens: int = 1024
    sink_dims: tuple[int, ...] = ()
    accepts_images: bool = False
    follows_grammars: bool = False  # the bytes of its tokens are known, and it has an end token
    batch_invariant: bool = False  # see EngineConfig
    fingerprint: str = ""


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """Load and lifetime counters.

    ``forms`` counts steps by what was launched for them; ``between_tokens`` has the seconds between
    two tokens of a sequence, ``step_tokens`` the tokens that steps computed, cached ones left out.
    """

    running: int = 0
    waiting: int = 0
    cache_usage: float = 0.0  # used fraction of cache pages
    prefix_queries: int = 0  # prompt tokens looked up
    prefix_hits: int = 0
    preemptions: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    image_encodes: int = 0
    plans: int = 0
    forms: tuple[FormCount, ...] = ()
    between_tokens: Histogram | None = None
    step_tokens: Histogram | None = None
