"""The grammars of an engine's sequences: compiled in threads, told of tokens, asked for masks.

A sequence waits in the queue until its grammar is compiled. From then on its *matcher* lives beside
it. The forward pass of a step does not depend on masks; so that is queued first, then the step
before is read, matchers are told its tokens, and masks are filled in while the device computes.

    step t        forward . . . . . . . . . . mask, draw
    step t + 1                                          forward . . . . . . . . mask, draw
    host             queue t + 1 up to its draws, read t, tell, fill, queue the draws of t + 1

Nothing of a step is read before its draws are queued, so nothing ends between its two halves.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Batch
from concurrent.futures import FIRST_COMPLETED, wait

import numpy as np
import torch

from saccade_server.engine.chunk import Chunk
from saccade_server.engine.grammar_state import GrammarState, GrammarStop
from saccade_server.engine.masks import FREE, Masks, bits_of
from saccade_server.engine.request import Failure
from saccade_server.engine.sampler import Sample
from saccade_server.engine.sequence import Sequence
from saccade_server.grammars.compiling import Compiler
from saccade_server.grammars.errors import GrammarFailed
from saccade_server.grammars.vocabulary import Vocabulary

WAIT_SECONDS = 0.002
"""How long an engine with nothing else to do waits for a grammar before it looks for commands."""

NO_GRAMMARS = "the engine does not know the bytes of its tokens, so it can follow no grammar"
STUCK = (
    "The grammar allows nothing but the end of the answer after {generated} tokens, and min_tokens "
    "is {min_tokens}."
)


class Grammars:
    """Those of the sequences of one engine."""

    def __init__(self, vocabulary: Vocabulary | None, device: torch.device) -> None:
        self._compiler = None if vocabulary is None else Compiler(vocabulary)
        self._vocabulary = vocabulary
        self._device = device
        self._compiling: dict[Sequence, None] = {}

    @property
    def known(self) -> bool:
        """True if there can be grammars."""
        return self._compiler is not None

    def admit(self, sequence: Sequence) -> None:
        """Begin to compile the grammar of a new sequence, if it has one."""
        grammar = sequence.request.grammar
        if grammar is None:
            return
        assert self._compiler is not None, "such a request is refused"
        sequence.grammar = GrammarState(self._compiler.start(grammar))
        self._compiling[sequence] = None

    def forget(self, sequence: Sequence) -> None:
        """A sequence has ended."""
        if sequence.grammar is not None and sequence in self._compiling:
            del self._compiling[sequence]
            sequence.grammar.compiling.cancel()

    def settle(self) -> list[tuple[Sequence, GrammarStop]]:
        """Let sequences begin whose grammars are compiled; returns those whose grammars failed."""
        failed: list[tuple[Sequence, GrammarStop]] = []
        if not self._compiling:
            return failed
        for sequence in [s for s in self._compiling if _state(s).compiling.done()]:
            del self._compiling[sequence]
            try:
                _state(sequence).matcher = _state(sequence).compiling.result()
            except Exception as error:
                failed.append((sequence, GrammarStop(0, Failure.GRAMMAR_REFUSED, str(error))))
        return failed

    def wait(self, seconds: float | None = WAIT_SECONDS) -> None:
        """Wait so long, or as long as it takes, for some grammar, if any is being compiled."""
        if self._compiling:
            pending = [_state(sequence).compiling for sequence in self._compiling]
            wait(pending, timeout=seconds, return_when=FIRST_COMPLETED)

    def masks(self, held: Batch[Sequence], found: Iterable[tuple[Chunk, Sample | None]]) -> Masks:
        """The masks of a step's draws.

        Args:
            held: leaders that draw in it and have grammars, all of them running.
            found: what the step before has drawn, not yet added to its sequences.
        """
        drawn = {chunk.sequence: sample for chunk, sample in found if chunk.draws}
        for sequence in held:
            sample = drawn.get(sequence)
            if sample is not None:
                self.tell(sequence, sample.token)
        return self._fill(held)

    def tell(self, sequence: Sequence, token: int) -> None:
        """Tell a sequence's matcher the token behind those that it knows.

        One that stops the answer is no part of it, and may come before the answer is whole.
        """
        state = _state(sequence)
        if state.stop is not None or state.ended:
            return
        assert state.matcher is not None
        assert self._vocabulary is not None
        ends = token in self._vocabulary.ends
        state.ended = ends or token in sequence.request.sampling.stop_token_ids
        try:
            if ends or not state.ended:
                state.matcher.accept(token)
        except GrammarFailed as error:
            state.stop = GrammarStop(state.known, Failure.GRAMMAR_FAILED, str(error))
            return
        state.known += 1

    def _fill(self, held: Batch[Sequence]) -> Masks:
        assert self._vocabulary is not None
        bits = bits_of(len(held), self._vocabulary.words, self._device)
        rows = bits.numpy()
        places: dict[Sequence, int] = {}
        for sequence in held:
            if self._fill_row(sequence, rows[len(places)]):
                places[sequence] = len(places)
        return Masks(places, bits[: len(places)]) if places else FREE

    def _fill_row(
        self, sequence: Sequence, row: np.ndarray[tuple[int], np.dtype[np.int32]]
    ) -> bool:
        """False if the sequence may draw anything, or what it draws is nobody's."""
        state = _state(sequence)
        if state.stop is not None or state.ended or sequence.is_complete:
            return False
        assert state.matcher is not None
        try:
            left = state.matcher.fill(row)
        except GrammarFailed as error:
            state.stop = GrammarStop(state.known, Failure.GRAMMAR_FAILED, str(error))
            return False
        if left < 0:
            return False
        barred = sequence.barred
        if left <= len(barred) and left == _count(row, barred):
            least = sequence.request.sampling.min_tokens
            reason = STUCK.format(generated=state.known, min_tokens=least)
            state.stop = GrammarStop(state.known, Failure.GRAMMAR_STUCK, reason)
            return False
        return True


def _state(sequence: Sequence) -> GrammarState:
    assert sequence.grammar is not None
    return sequence.grammar


def _count(row: np.ndarray[tuple[int], np.dtype[np.int32]], tokens: Batch[int]) -> int:
    """How many of these tokens a row of bits allows."""
    return sum(int(row[token // 32]) >> token % 32 & 1 for token in tokens)
