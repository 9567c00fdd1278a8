"""Draws of padded decodes: by parameters in fixed places, so that a GPU captures them.

The graph of a step ends with the greedy draw (:meth:`PaddedDraws.greedy`): it is right for most
rows, and gives what tells whether a row's logits are all finite. Rows that sample are drawn behind
it and take its tokens' places, in graphs of their own: one for each kind and padded number of
*such rows*, whatever the size of the step. Part of the step's graph they would multiply its
variants by the kinds, and one sampling request would have a whole batch sorted.

A row draws what it draws in an ordinary step, by the same functions (sampler.py). Requests that
change single logits, and plans that combine rows or choose among candidates, draw there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence as Batch
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_server.engine.batch import Ints
from saccade_server.engine.logprobs import Logprobs
from saccade_server.engine.sampler import OFF, PICKS, Columns, DrawKind, Draws, Sample
from saccade_server.engine.transfer import Download, Layout

DrawVariant = tuple[DrawKind, int]
"""How rows are drawn, and their padded number."""

IDLE = np.array([[0.0], [1.0], [0.0], [OFF], [1.0]])
"""What padding draws with: the columns of the sampler."""


@dataclass(frozen=True)
class News:
    """What the host reads of a step: fields of one block, on the host or on the device.

    A row's logits are all finite if the highest and the lowest are: neither passes NaN over.
    """

    tokens: Any  # int64 [rows + 1]; the last place is padding's
    highest: Any  # float32 or wider [rows + 1]
    lowest: Any  # likewise

    @staticmethod
    def layout(rows: int, dtype: torch.dtype) -> Layout:
        """Where they lie, for logits of this dtype."""
        wide = np.float64 if dtype == torch.float64 else np.float32
        return Layout([((rows + 1,), np.int64), ((rows + 1,), wide), ((rows + 1,), wide)])


def parameters(most: int) -> Layout:
    """For each kind of draw: rows of logits, int64 [most], and their columns, float64 [5, most]."""
    return Layout([((most,), np.int64), ((5, most), np.float64)] * len(PICKS))


class PaddedDraws:
    """Draws from a buffer of logits. Padding draws from, and into, the buffers' last rows."""

    def __init__(
        self, logits: torch.Tensor, news: torch.Tensor, inputs: torch.Tensor, sizes: Batch[int]
    ) -> None:
        """
        Args:
            logits: float32 or wider [most rows + 1, vocabulary].
            news: bytes of a :class:`News`.
            inputs: bytes of :func:`parameters`.
            sizes: padded numbers of rows, ascending.
        """
        self._logits = logits
        self._most = len(logits) - 1
        self._sizes = sizes
        self._bytes = news
        self._fields = News.layout(self._most, logits.dtype)
        self.news = News(*self._fields.tensors(news))
        self.layout = parameters(self._most)
        tensors = self.layout.tensors(inputs)
        self._inputs = dict(zip(PICKS, zip(tensors[::2], tensors[1::2], strict=True), strict=True))
        self._written: dict[DrawKind, int] = {}

    @property
    def variants(self) -> list[DrawVariant]:
        """All that a step may need, those that take most memory first."""
        kinds = (DrawKind.FILTERED, DrawKind.FREE)
        return [(kind, size) for size in reversed(self._sizes) for kind in kinds]

    def write(self, block: NDArray[np.uint8], draws: Draws) -> list[DrawVariant]:
        """Write the parameters of a step's draws.

        Returns:
            What to compute behind the step.
        """
        arrays, played = self._arrays(block), []
        for kind, (rows, values) in draws.items():
            size = self._sizes[bisect_left(self._sizes, len(rows))]
            self.pad(block, (kind, size))
            places, columns = arrays[kind]
            places[: len(rows)] = rows
            columns[:, : len(rows)] = values
            played.append((kind, size))
        return played

    def pad(self, block: NDArray[np.uint8], variant: DrawVariant) -> None:
        """Write padding in every place of a variant."""
        kind, size = variant
        rows, columns = self._arrays(block)[kind]
        rows[:size] = self._most
        columns[:, :size] = IDLE
        self._written[kind] = size

    def compute(self, kind: DrawKind, size: int) -> None:
        """Draw for the rows that were written; all that a graph captures."""
        assert size == self._written.get(kind), "the block holds the draws of another size"
        rows, columns = self._inputs[kind]
        at, values = rows[:size], columns[:, :size]
        picked = PICKS[kind](self._logits.index_select(0, at), Columns(*values[:, :, None]))
        self.news.tokens.index_copy_(0, at, picked)

    def greedy(self, size: int) -> None:
        """The likeliest token of each of the first rows, and whether the row is finite."""
        logits, news = self._logits[:size], self.news
        torch.max(logits, -1, out=(news.highest[:size], news.tokens[:size]))
        torch.amin(logits, -1, out=news.lowest[:size])

    def take(self, rows: int, logprobs: Logprobs) -> PaddedDrawing:
        """What the first rows have drawn, on its way to the host."""
        kept = self._bytes if self._bytes.is_cuda else self._bytes.clone()
        return PaddedDrawing(rows, self._fields, Download([kept, *logprobs.tensors]), logprobs)

    def _arrays(self, block: NDArray[np.uint8]) -> dict[DrawKind, tuple[Ints, NDArray[np.float64]]]:
        arrays = self.layout.arrays(block)
        return dict(zip(PICKS, zip(arrays[::2], arrays[1::2], strict=True), strict=True))


@dataclass(frozen=True)
class PaddedDrawing:
    """Tokens that a padded step draws; see :class:`sampler.Drawing`."""

    _rows: int
    _fields: Layout
    _news: Download
    _logprobs: Logprobs

    def wait(self) -> list[Sample | None]:
        """What was drawn, by row; None where the logits were not finite."""
        block, *rest = self._news.wait()
        news = News(*(field[: self._rows] for field in self._fields.arrays(block.numpy())))
        usable = np.isfinite(news.highest) & np.isfinite(news.lowest)
        picked: list[int] = news.tokens.tolist()
        if usable.all() and not self._logprobs.groups:
            return [Sample(token, None) for token in picked]
        found = self._logprobs.read(picked, rest)
        return [
            Sample(token, own) if finite else None
            for token, own, finite in zip(picked, found, usable.tolist(), strict=True)
        ]
