"""Vocabularies of byte-level BPE's kind: all bytes, and pieces of words as texts have them.

They are drawn, not trained: letters follow each other as in :data:`LIKE`, many pieces begin with a
space, some with a capital, and there are digits, runs of spaces and the signs of JSON.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import cache
from itertools import pairwise

import numpy as np

from saccade_server.grammars.vocabulary import Vocabulary

LIKE = """the quick answers of a language model are drawn token by token and a grammar says which of
them may follow what was written before so that applications read them without guessing while the
server keeps its requests apart interventions change attention inside of the forward pass and masks
come behind it whatever the method does to probabilities numbers strings arrays objects and schemas
describe most of what programs exchange between each other over networks around the whole world"""
SIGNS = ('{"', '":', '": ', '",', '", "', '"}', "},", "]}", "[{", "[]", "{}", "\\n", "\\", '\\"')
END = 0
"""The token that ends answers; behind it lie the bytes."""
SEED = 5


@cache
def tokens_of(size: int) -> list[bytes]:
    """So many tokens by id."""
    rng = np.random.default_rng(SEED)
    follows: dict[str, Counter[str]] = defaultdict(Counter)
    for one, two in pairwise(LIKE):
        if one.isalpha() and two.isalpha():
            follows[one][two] += 1
    chains = {
        letter: ("".join(counts), np.array([*counts.values()]) / counts.total())
        for letter, counts in follows.items()
    }
    found = dict.fromkeys([b"", *(bytes([byte]) for byte in range(256))])
    found |= dict.fromkeys(sign.encode() for sign in SIGNS)
    found |= dict.fromkeys(b" " * count for count in range(2, 40))
    found |= dict.fromkeys(str(number).encode() for number in range(1000))
    letters = [*chains]
    while len(found) < size:
        piece = letters[rng.integers(len(letters))]
        for _ in range(int(rng.integers(1, 12))):
            options, shares = chains[piece[-1].lower()]
            piece += options[rng.choice(len(options), p=shares)]
        style = rng.random()
        piece = piece.capitalize() if style < 0.25 else piece
        found[(" " * (style > 0.45) + piece).encode()] = None
    return list(found)[:size]


@cache
def vocabulary(size: int) -> Vocabulary:
    """The same as grammars need it."""
    return Vocabulary.of(tokens_of(size), (), (END,), size)


def encode(text: str, size: int) -> list[int]:
    """A text in the longest tokens, from its beginning."""
    ids = {token: number for number, token in enumerate(tokens_of(size))}
    longest, data, found = max(map(len, ids)), text.encode(), []
    while data:
        piece = next(data[:n] for n in range(min(longest, len(data)), 0, -1) if data[:n] in ids)
        found.append(ids[piece])
        data = data[len(piece) :]
    return found
