"""What a padded step leaves in fixed places: for stages behind it, and for the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from saccade_kernels import ops
from saccade_server.engine.batch import Ints
from saccade_server.engine.logprobs import Logprobs
from saccade_server.engine.sampler import Sample
from saccade_server.engine.transfer import Download, Layout
from saccade_server.models.tape import FixedTape


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


class StepOutputs:
    """Buffers of one row for each row of the largest step, and behind them padding's."""

    news: News

    def __init__(self, logits: torch.Tensor, tape: FixedTape) -> None:
        """
        Args:
            logits: float32 or wider [most rows + 1, vocabulary].
            tape: activations of as many rows.
        """
        self.logits = logits
        self.tape = tape
        self.residuals = tape.residuals
        """What enters each layer with its edits, [layers, most rows + 1, hidden_size]."""
        self.most = len(logits) - 1
        """The largest number of rows, and the row of padding."""
        self.words = -(-logits.shape[1] // 32)
        """Of a row of bits, one for each token."""
        shape, device = (len(logits), self.words), logits.device
        self.allowed = torch.full(shape, -1, dtype=torch.int32, device=device)
        """Which tokens each row may have, see ``ops.mask_rows``: all, but in the midst of a step.
        """
        self._fields = News.layout(self.most, logits.dtype)
        self.size = self._fields.size
        """Bytes of :attr:`news`."""

    def bind(self, memory: torch.Tensor) -> None:
        """Say where the news lie: uint8 of :attr:`size`."""
        self._bytes = memory
        self.news = News(*self._fields.tensors(memory))

    def greedy(self, size: int) -> None:
        """The likeliest token of each of the first rows, and whether the row is finite."""
        logits, news = self.logits[:size], self.news
        torch.max(logits, -1, out=(news.highest[:size], news.tokens[:size]))
        torch.amin(logits, -1, out=news.lowest[:size])

    def finite(self) -> torch.Tensor:
        """0 for each row whose logits are all finite, NaN for others: [most + 1]."""
        found: torch.Tensor = self.news.highest * 0 + self.news.lowest * 0
        return found

    def replace(self, rows: torch.Tensor, logits: torch.Tensor, finite: torch.Tensor) -> None:
        """Put other logits in the place of some rows, and draw greedily from them.

        Args:
            rows: int64 [n].
            logits: [n, vocabulary], -inf for tokens that cannot be drawn.
            finite: [n], 0 where all that they were made from was finite, NaN elsewhere.
        """
        self.logits.index_copy_(0, rows, logits)
        highest, tokens = logits.max(-1)
        self.news.tokens.index_copy_(0, rows, tokens)
        self.news.highest.index_copy_(0, rows, highest)
        self.news.lowest.index_copy_(0, rows, finite)

    def mask(self, rows: torch.Tensor) -> None:
        """Leave of some rows, int64 [n], what :attr:`allowed` says."""
        ops.mask_rows(self.logits, rows, self.allowed, rows)

    def draw_again(self, rows: torch.Tensor) -> None:
        """Draw greedily from some rows, int64 [n], of which tokens were taken away."""
        news = self.news
        usable = self.finite().index_select(0, rows)
        highest, tokens = self.logits.index_select(0, rows).max(-1)
        news.tokens.index_copy_(0, rows, tokens)
        news.highest.index_copy_(0, rows, highest)
        news.lowest.index_copy_(0, rows, usable)

    def allow_all(self) -> None:
        """Let every row have all tokens, whatever a step that failed has left."""
        self.allowed.fill_(-1)

    def take(self, rows: int, logprobs: Logprobs, drawing: Ints | None = None) -> PaddedDrawing:
        """What the first rows have drawn, on its way to the host.

        ``drawing``: indices of the rows that draw a token; None: all rows do.
        """
        kept = self._bytes if self._bytes.is_cuda else self._bytes.clone()
        download = Download([kept, *logprobs.tensors])
        return PaddedDrawing(rows, self._fields, download, logprobs, drawing)


@dataclass(frozen=True)
class PaddedDrawing:
    """Tokens that a padded step draws; see :class:`sampler.Drawing`."""

    _rows: int
    _fields: Layout
    _news: Download
    _logprobs: Logprobs
    _drawing: Ints | None

    def wait(self) -> list[Sample | None]:
        """What was drawn, by row that draws; None where the logits were not finite."""
        block, *rest = self._news.wait()
        news = News(*(field[: self._rows] for field in self._fields.arrays(block.numpy())))
        usable = np.isfinite(news.highest) & np.isfinite(news.lowest)
        picked: list[int] = news.tokens.tolist()
        if usable.all() and not self._logprobs.groups:
            drawn: list[Sample | None] = [Sample(token, None) for token in picked]
        else:
            found = self._logprobs.read(picked, rest)
            drawn = [
                Sample(token, own) if finite else None
                for token, own, finite in zip(picked, found, usable.tolist(), strict=True)
            ]
        return drawn if self._drawing is None else [drawn[row] for row in self._drawing.tolist()]
