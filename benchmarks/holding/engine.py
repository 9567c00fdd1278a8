"""An engine of the sizes of a 7B whose model computes nothing and writes what it is told to.

One step ahead, with inputs in fixed places, its device does nothing but hand out the next token of
each row's text, so that what is timed is what the host does while a GPU computes. As they come,
rows of logits are drawn from on the CPU, masks and all.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hosting.stub import StubModel

from holding.schemas import ITEM, ITEMS
from holding.vocabulary import encode, vocabulary
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.decode import StepVariant
from saccade_server.engine.request import GenerateRequest, SamplingParams
from saccade_server.grammars.grammar import Grammar, GrammarKind
from saccade_server.grammars.json_schema import of_schema

SIZE = 151936
"""Tokens of the vocabulary: Qwen's."""
MOST = 32
PROMPT, MAX_LEN, SETTLE = 200, 2048, 20
WORDS = ("grammar", "answer to the question", "forward pass", "attention of most heads", "mask")


class Writer(StubModel):
    """Row r of a batch gets the tokens of text r, one a step."""

    head_dim, vocab_size, eos_token_ids = 8, SIZE, (0,)

    def __init__(self, texts: list[list[int]]) -> None:
        super().__init__()
        self._texts = texts
        self.steps = 0
        self._zeros = torch.zeros(len(texts), SIZE)

    def next(self) -> list[int]:
        """The next token of each text."""
        self.steps += 1
        return [text[self.steps - 1] for text in self._texts]

    def logits(self, hidden: torch.Tensor, invariant: bool = False) -> torch.Tensor:
        if len(hidden) != len(self._texts):
            return torch.zeros(len(hidden), SIZE)
        at = torch.arange(len(hidden))
        if self.steps:
            self._zeros[at, [text[self.steps - 1] for text in self._texts]] = 0
        self._zeros[at, self.next()] = 1
        return self._zeros


class Device:
    """A recorder: of what is replayed, steps hand out tokens and nothing else runs."""

    def __init__(self, model: Writer) -> None:
        self._model = model
        self.core: EngineCore | None = None

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        (variant,) = run.args  # type: ignore[attr-defined]
        return self._step if isinstance(variant, StepVariant) else lambda: None

    def used(self) -> int:
        return 0

    def _step(self) -> None:
        assert self.core is not None
        decoder = self.core._runner._decoder
        assert decoder is not None
        found = torch.tensor(self._model.next())
        decoder.outputs.news.tokens[: len(found)] = found


def text_of(number: int, length: int) -> list[int]:
    """Tokens of an array that does not end, other words in each."""
    rng, pieces = np.random.default_rng(number), ["["]
    while len(pieces) < length // 8:
        item = {
            "name": " ".join(rng.choice(WORDS, 3)),
            "count": int(rng.integers(10000)),
            "price": round(float(rng.random()), 2),
            "kind": str(rng.choice(ITEM["properties"]["kind"]["enum"])),
            "paid": bool(rng.random() < 0.5),
        }
        pieces.append(json.dumps(item) + ", ")
    return encode("".join(pieces), SIZE)[:length]


def decoding(batch: int, held: int, ahead: bool, known: bool = True) -> EngineCore:
    """An engine that decodes so many requests, some of them under a grammar, and has for a while.

    Args:
        ahead: one step ahead, in fixed places.
        known: the engine could follow grammars.
    """
    model: Any = Writer([text_of(number, 1200) for number in range(batch)])
    config = EngineConfig(
        model="stub",
        max_num_seqs=MOST,
        max_batched_tokens=8192,
        max_model_len=MAX_LEN,
        cache_tokens=MOST * MAX_LEN,
        overlap=ahead,
        padded_decode=ahead,
    )
    core = EngineCore(model, config, vocabulary=vocabulary(SIZE) if known else None)
    if ahead:
        device = Device(model)
        core._runner.capture(device)
        device.core = core
    grammar = Grammar(GrammarKind.JSON_SCHEMA, of_schema(ITEMS))
    for index in range(batch):
        request = GenerateRequest(
            request_id=f"{index}",
            tokens=tuple(range(2, PROMPT + 2)),
            sampling=SamplingParams(max_tokens=1200, ignore_eos=True, temperature=0.0),
            grammar=grammar if index < held else None,
        )
        assert core.submit(request) is None
    core._grammars.wait(None)
    while core.stats().generated_tokens < batch * SETTLE:
        core.step()
    assert core.stats().running == batch, "a grammar has refused what was written"
    gc.collect()
    return core
