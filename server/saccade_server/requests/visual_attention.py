"""The visual attention score (VAS): how much a user's tokens look at images and not before them.

    VAS_i = sum of A_ij over image tokens j / sum of A_ij over system tokens j

of row i in one layer and head (AVAR, arXiv 2603.03825, equation 1). Rows are the user's tokens
behind the last image, up to the answer. System tokens are those before the first user's role
marker, without the first token of all, which is an attention sink and outweighs them. Where chats
of a model have no marker that is known here, or nothing before it, there is no such score.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade_interventions.context import Prompt, Span

USER = re.compile(
    r"<\|im_start\|>\s*user|<start_of_turn>user|<\|start_header_id\|>user<\|end_header_id\|>"
    r"|<\|user\|>|<\|im_start\|>User:|\[INST\]|\bUSER:|\bUser:|\bHuman:"
)
"""Role markers of users, in the templates of chats."""

ASSISTANT = re.compile(
    r"<\|im_start\|>\s*assistant|<start_of_turn>model|<\|start_header_id\|>assistant"
    r"|<\|assistant\|>|\[/INST\]|\bASSISTANT:|\bAssistant:"
)

SMALLEST = 1e-6
"""The least that is divided by."""


@dataclass(frozen=True)
class Regions:
    """The tokens that a score is about."""

    system: Span
    images: tuple[Span, ...]
    rows: Span  # of the user, behind the last image


@dataclass(frozen=True)
class Summary:
    """Scores and shares of all rows, layers and heads together."""

    mean_of_ratios: float  # the paper's
    ratio_of_sums: float
    image: float  # mean share of attention
    system: float
    other: float


def regions(prompt: Prompt, *, with_first: bool = False) -> Regions:
    """Where the tokens are. ``with_first``: the first token of all counts as a system token.

    Raises:
        ValueError: the score is not defined for the prompt; the message says why, as the end of a
            sentence.
    """
    if not prompt.images:
        raise ValueError("the prompt has no image")
    marker = USER.search(prompt.text)
    if marker is None:
        raise ValueError("no role marker of a user is known in the prompt")
    first = _token_at(prompt, marker.start())
    system = (0 if with_first else 1, first)
    if system[0] >= system[1]:
        raise ValueError("nothing is before the first user's turn")
    if any(start < first for start, _ in prompt.images):
        raise ValueError("an image is before the first user's turn")
    start = prompt.question_start
    begins = prompt.offsets[start][0] if start < prompt.length else len(prompt.text)
    answer = ASSISTANT.search(prompt.text, begins)
    end = prompt.length if answer is None else _token_at(prompt, answer.start())
    if start >= end:
        raise ValueError("no token of the user is behind the last image")
    return Regions(system, prompt.images, (start, end))


def ratios(image: NDArray[Any], system: NDArray[Any]) -> NDArray[Any]:
    """Scores of shares of attention, of any shape."""
    found: NDArray[Any] = image / np.maximum(system, SMALLEST)
    return found


def summary(image: NDArray[Any], system: NDArray[Any]) -> Summary:
    """Of shares [rows, layers, heads] of attention on images and on system tokens."""
    image, system = image.astype(np.float64), system.astype(np.float64)
    return Summary(
        mean_of_ratios=float(ratios(image, system).mean()),
        ratio_of_sums=float(image.sum() / max(float(system.sum()), SMALLEST)),
        image=float(image.mean()),
        system=float(system.mean()),
        other=float(1 - image.mean() - system.mean()),
    )


def _token_at(prompt: Prompt, character: int) -> int:
    """The first token that reaches behind a character of the prompt's text."""
    ends = np.fromiter((end for _, end in prompt.offsets), np.int64, len(prompt.offsets))
    return int(np.argmax(ends > character)) if (ends > character).any() else prompt.length
