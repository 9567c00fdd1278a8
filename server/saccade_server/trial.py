"""What the engine gave for one request of the self-test, and how two of them differ."""

from __future__ import annotations

import math
from dataclasses import dataclass

from saccade_server.engine.request import Receipt, TokenLogprobs


@dataclass(frozen=True)
class Trial:
    """Tokens, the log-probabilities they were drawn from, and the receipt of what ran."""

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    receipt: Receipt | None


def largest_change(one: Trial, other: Trial) -> float:
    """Of the log-probability of one token, up to the first place where the tokens differ."""
    changes = [0.0]
    for first, second in zip(one.logprobs, other.logprobs, strict=False):
        before, after = _by_token(first), _by_token(second)
        common = before.keys() & after.keys()
        if not common:
            return math.inf
        changes += [abs(before[t] - after[t]) for t in common if before[t] != after[t]]
        if first.token != second.token:
            break
    return max(changes)


def are_numbers(entry: TokenLogprobs) -> bool:
    """False if some log-probability is NaN or infinite; that of an excluded token is -inf."""
    return not any(math.isnan(value) or value == math.inf for value in _by_token(entry).values())


def _by_token(entry: TokenLogprobs) -> dict[int, float]:
    return {**dict(entry.top), entry.token: entry.logprob}
