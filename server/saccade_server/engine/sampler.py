"""Draw the next token of every sequence of a step, each by its own parameters and its own seed.

The draw at output position t of a request with seed s uses number t of a counter-based generator
keyed by s, so it depends on nothing else in the batch, and a preempted sequence goes on as it would
have. Order of operations, as in vLLM: logit bias, penalties, ends held back by min_tokens, masks of
grammars, temperature, min-p, top-k, top-p, draw. Log-probabilities are those of the distribution
before all of it: the model's own, or what a plan's rule made of it (see contrast.py).

Everything is queued on the device and nothing is read there: the host knows seeds and positions,
and learns tokens when :meth:`Drawing.wait` is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Batch
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from itertools import count

import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray

from saccade_server.engine.logprobs import Logprobs, queue_logprobs
from saccade_server.engine.penalties import edit_logits
from saccade_server.engine.request import SamplingParams, TokenLogprobs
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.transfer import Download, Uploader

GREEDY_BELOW = 1e-5
"""Temperatures under this mean greedy, as in vLLM."""

OFF = float(2**31)
"""Stands for no top_k: more tokens than there are."""

AHEAD = 64
"""Numbers for draws that are made at once: one costs nearly as much as all."""

UNUSABLE = -1
"""Stands for the token of a row whose logits are not finite."""


class Sample(Struct, frozen=True):
    """The token drawn for one sequence."""

    token: int
    logprobs: TokenLogprobs | None


class DrawKind(IntEnum):
    """How a token is drawn."""

    GREEDY = 0
    FREE = 1  # from all tokens
    FILTERED = 2  # from those that min-p, top-k and top-p leave

    @classmethod
    def of(cls, p: SamplingParams) -> DrawKind:
        """As these parameters say."""
        if p.temperature < GREEDY_BELOW:
            return cls.GREEDY
        return cls.FILTERED if p.top_k > 0 or p.top_p < 1 or p.min_p > 0 else cls.FREE


Draws = Mapping[DrawKind, tuple[NDArray[np.int64], NDArray[np.float64]]]
"""For each kind but the greedy one: rows, and their :class:`Columns`, [5, rows]."""


@dataclass(frozen=True)
class Drawing:
    """Tokens that the device draws."""

    tokens: torch.Tensor  # int64 [rows], on the device; always valid ids
    _news: Download
    _logprobs: Logprobs

    def wait(self) -> list[Sample | None]:
        """What was drawn, by row; None where the logits were not finite."""
        tokens, *rest = self._news.wait()
        picked: list[int] = tokens.tolist()
        logprobs = self._logprobs.read(picked, rest)
        return [
            None if token == UNUSABLE else Sample(token, found)
            for token, found in zip(picked, logprobs, strict=True)
        ]


def draw(
    logits: torch.Tensor,
    sequences: Batch[Sequence],
    positions: Batch[int],
    upload: Uploader,
    usable: torch.Tensor | None = None,
    edited: torch.Tensor | None = None,
) -> Drawing:
    """Queue the draw of one token a sequence.

    Args:
        logits: [sequences, vocabulary], float32; not modified, and not read after the return by
            anything that is not queued yet.
        sequences: in the order of the rows.
        positions: of the tokens to draw, counted from the first generated one.
        usable: bool [sequences], rows to draw from; None: those whose logits are all finite.
        edited: ``logits`` with what the requests change in single ones, if that is known already.
    """
    params = [sequence.request.sampling for sequence in sequences]
    if edited is None:
        edited = edit_logits(logits, sequences, upload)
    return draw_rows(logits, edited, draws_of(params, positions), params, upload, usable)


def draw_rows(
    logits: torch.Tensor,
    edited: torch.Tensor,
    draws: Draws,
    params: Batch[SamplingParams],
    upload: Uploader,
    usable: torch.Tensor | None = None,
) -> Drawing:
    """As :func:`draw`, of rows whose kinds are known; ``params`` say who wants log-probabilities,
    and may be empty.
    """
    tokens = edited.argmax(-1)
    for kind, (rows, columns) in draws.items():
        tokens = _replace(tokens, edited, rows, columns, PICKS[kind], upload)
    if usable is None:
        usable = torch.isfinite(logits).all(-1)
    news = [tokens.masked_fill(~usable, UNUSABLE)]
    logprobs = queue_logprobs(logits, params, tokens, upload)
    return Drawing(tokens, Download(news + logprobs.tensors), logprobs)


def draws_of(params: Batch[SamplingParams], positions: Batch[int]) -> Draws:
    """What rows with these parameters draw at these output positions."""
    kinds, found = [DrawKind.of(p) for p in params], {}
    for kind in PICKS:
        rows = [i for i, own in enumerate(kinds) if own is kind]
        if rows:
            uniform = [_uniform(params[i].seed, positions[i]) for i in rows]
            columns = Columns.table([params[i] for i in rows], uniform)
            found[kind] = np.array(rows, np.int64), columns
    return found


@dataclass(frozen=True)
class Columns:
    """Parameters of some rows, float64 [rows, 1] each."""

    uniform: torch.Tensor
    temperature: torch.Tensor
    min_p: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor

    @staticmethod
    def table(params: Batch[SamplingParams], uniform: Batch[float]) -> NDArray[np.float64]:
        """The columns of rows that sample, with the number that decides each row's draw."""
        rows = [
            (number, p.temperature, p.min_p, float(p.top_k or OFF), p.top_p)
            for p, number in zip(params, uniform, strict=True)
        ]
        return np.array(rows).T.copy()


def _replace(
    tokens: torch.Tensor,
    logits: torch.Tensor,
    rows: NDArray[np.int64],
    table: NDArray[np.float64],
    pick: Pick,
    upload: Uploader,
) -> torch.Tensor:
    """``tokens`` with those of ``rows`` drawn by ``pick``."""
    values, index = upload(table, rows)
    columns = Columns(*values[:, :, None])
    if len(rows) == len(tokens):
        return pick(logits, columns)
    return tokens.index_copy(0, index, pick(logits.index_select(0, index), columns))


def _draw(logits: torch.Tensor, columns: Columns) -> torch.Tensor:
    """Inverse-CDF draw in the order of the vocabulary, which needs no sorting. int64 [rows]."""
    mass = cumulated(_scale(logits, columns).softmax(-1, dtype=torch.float64))
    target = columns.uniform * mass[:, -1:]
    last = mass.shape[-1] - 1
    return torch.searchsorted(mass, target, right=True).squeeze(-1).clamp(max=last)


def _draw_filtered(logits: torch.Tensor, columns: Columns) -> torch.Tensor:
    """Inverse-CDF draw over what the filters leave, in descending order. int64 [rows]."""
    probs, index = keep_likely(logits, columns)
    mass = cumulated(probs)
    target = columns.uniform.to(mass.dtype) * mass[:, -1:]
    place = (mass <= target).sum(-1, keepdim=True)
    # Rounding may put the target on the last kept value; the draw stays inside what is kept.
    last = ((probs > 0).sum(-1, keepdim=True) - 1).clamp(min=0)
    return index.gather(-1, torch.minimum(place, last)).squeeze(-1)


Pick = Callable[[torch.Tensor, Columns], torch.Tensor]

PICKS: dict[DrawKind, Pick] = {DrawKind.FREE: _draw, DrawKind.FILTERED: _draw_filtered}
"""What draws a token, int64 [rows], from logits [rows, vocabulary] by a row's own columns."""


def keep_likely(logits: torch.Tensor, columns: Columns) -> tuple[torch.Tensor, torch.Tensor]:
    """What temperature, min-p, top-k and top-p leave of each row, likeliest first.

    Returns:
        Probabilities [rows, vocabulary], 0 for what is filtered out, and their tokens, int64.
    """
    ordered, index = _scale(logits, columns).sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(ordered.shape[-1], device=ordered.device)
    probs = ordered.softmax(-1)
    keep = probs >= columns.min_p.to(probs.dtype) * probs[:, :1]
    keep &= rank < columns.top_k
    keep[:, 0].fill_(True)
    probs = ordered.masked_fill(~keep, float("-inf")).softmax(-1)
    keep &= cumulated(probs) - probs < columns.top_p.to(probs.dtype)
    keep[:, 0].fill_(True)
    return probs * keep, index


def cumulated(probs: torch.Tensor) -> torch.Tensor:
    """Running sums of each row, in an order that the number of rows does not change.

    On a GPU PyTorch has an algorithm of its own for a row that is alone.
    """
    if probs.is_cuda and len(probs) == 1:
        return probs.expand(2, -1).cumsum(-1)[:1]
    return probs.cumsum(-1)


def _scale(logits: torch.Tensor, columns: Columns) -> torch.Tensor:
    return logits.float() / columns.temperature.to(logits.dtype)


def uniforms(seed: int, position: int) -> Iterator[float]:
    """Numbers in [0, 1) for the draws at this output position of a request with this seed.

    Each has a counter of its own, (position, draw), in the first two of Philox's four words: one
    counter gives four numbers, and those behind them are the next position's.
    """
    for draw in count():
        yield float(_generator(seed, position + (draw << 64)).random())


def numbers(seed: int, position: int, count: int) -> NDArray[np.float64]:
    """The first of :func:`uniforms` at ``count`` positions from this one on, in order."""
    return _generator(seed, position).random(4 * count)[::4]


@lru_cache(maxsize=4096)
def _block(seed: int, block: int) -> list[float]:
    found: list[float] = numbers(seed, block * AHEAD, AHEAD).tolist()
    return found


def _uniform(seed: int, position: int) -> float:
    """The first of :func:`uniforms`."""
    return _block(seed, position // AHEAD)[position % AHEAD]


def _generator(seed: int, counter: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed & (2**64 - 1), counter=counter))
