"""The state of one sequence while the engine works on it. No tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from saccade_interventions.needs import NOTHING, Needs
from saccade_interventions.phases import Phase
from saccade_interventions.plan import Plan
from saccade_interventions.rules import AnyFinding, Finding
from saccade_server.engine.grammar_state import GrammarState
from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.timing import Moments
from saccade_server.engine.traces.log import TraceLog


@dataclass(eq=False, slots=True, weakref_slot=True)
class Sequence:
    """Tokens so far, and what the sequence holds: pages, program rows, a tag row.

    ``computed`` tokens have their keys and values in the cache, or will have them once the steps
    that were started have run; the scheduler alone moves it. ``counted`` is its high-water mark
    over finished steps, so that a row recomputed after preemption counts once. ``drawing`` is 1
    while a step is running that draws the next token, which the host does not know yet.

    A sequence with ``branches`` leads a group, see groups.py; ``leader`` is None in a leader. A
    branch that ``measures`` leaves the group once its last prompt row is being computed.

    Attributes have slots: every step reads several of every sequence, and a dictionary that is
    looked at once, as a cached property does, makes them twice as slow.
    """

    request: GenerateRequest
    leader: Sequence | None = None
    measures: bool = False
    source: int = (
        -1
    )  # of a branch: the place of the intervention that asks for it; -1: a trace does
    ends: tuple[int, ...] = ()  # end-of-sequence and stop tokens, each once
    branches: list[Sequence] = field(default_factory=list)
    tokens: list[int] = field(init=False)
    prompt_length: int = field(init=False)  # tokens the request came with
    penalised: bool = field(init=False)  # a draw depends on the tokens before it
    computed: int = 0
    counted: int = 0
    drawing: int = 0
    preemptions: int = 0
    moments: Moments = field(default_factory=Moments)
    repeats: dict[int, int] = field(default_factory=dict)  # see Timing.extra_passes; by source
    pages: list[int] = field(default_factory=list)
    page_keys: list[bytes] = field(default_factory=list)
    cached_tokens: int = 0
    cached_until: int = 0  # position before which cached rows are among those
    tag_row: int = 0
    per_head_row: int = 0  # of heads with key classes of their own
    control_rows: dict[Phase, int] = field(default_factory=dict)
    rows_touched: dict[str, int] = field(default_factory=dict)
    output_counts: dict[int, int] = field(default_factory=dict)
    counts: dict[tuple[int, str], int] = field(default_factory=dict)  # (source, name): see Counter
    moved: NDArray[np.int32] | None = None  # [layers, heads], see Receipt; None: not known here
    findings: dict[type[Finding], AnyFinding] = field(default_factory=dict)
    charged: int = 0  # tokens of the answer that its owner's work has, see queue.py
    grammar: GrammarState | None = None  # of a leader; None: nothing holds its answer
    traced: TraceLog | None = field(init=False)  # what its trace has read; None: it has none

    def __post_init__(self) -> None:
        p = self.request.sampling
        self.tokens = list(self.request.tokens)
        self.prompt_length = len(self.request.tokens)
        for token in self.request.given:
            self.append(token)
        penalties = p.repetition_penalty, p.presence_penalty, p.frequency_penalty
        self.penalised = penalties != (1, 0, 0)
        self.traced = None if self.request.trace is None else TraceLog()

    def ids(self, start: int, end: int) -> NDArray[np.int64]:
        """The tokens from ``start`` to ``end``, all of them known."""
        if end <= self.prompt_length:
            return self.request.ids[start:end]
        return np.array(self.tokens[start:end], np.int64)

    def append(self, token: int) -> None:
        """Add a sampled token."""
        self.tokens.append(token)
        self.output_counts[token] = self.output_counts.get(token, 0) + 1

    @property
    def group(self) -> tuple[Sequence, ...]:
        """The leader of the sequence's group and its branches, the leader first."""
        leader = self.leader or self
        return (leader, *leader.branches)

    @property
    def needs(self) -> Needs:
        """What the rules of its plan need."""
        return NOTHING if self.plan is None else self.plan.needs

    @property
    def cacheable(self) -> int:
        """Tokens whose rows may be taken from the prefix cache: the last is always computed, and so
        is a row that a trace reads, until a step has computed it.
        """
        most, first = len(self.tokens) - 1, self.request.computed_from
        return most if first is None else min(most, max(first, self.counted))

    @property
    def is_ready(self) -> bool:
        """False while it cannot begin, because its grammar is not compiled."""
        return self.grammar is None or self.grammar.matcher is not None

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def is_complete(self) -> bool:
        """True if its last token is known: nothing is drawn behind its last row."""
        return self.generated >= self.request.sampling.max_tokens

    @property
    def length(self) -> int:
        """Tokens so far, with the one that is being drawn."""
        return len(self.tokens) + self.drawing

    @property
    def pending(self) -> int:
        """Tokens not yet computed; 1 while decoding."""
        return self.length - self.computed

    @property
    def barred(self) -> tuple[int, ...]:
        """Tokens that the next draw leaves out: those that end an answer, while it is too short.

        End-of-sequence tokens among them even if they are ignored as ends, as in vLLM.
        """
        short = self.length - self.prompt_length < self.request.sampling.min_tokens
        return self.ends if short else ()

    @property
    def waits(self) -> bool:
        """True while it must learn the token being drawn before it can compute anything."""
        if not self.drawing:
            return False
        request = self.request
        most = len(request.tokens) + request.sampling.max_tokens
        if self.penalised or len(self.tokens) + self.drawing >= most:
            return True
        return request.plan is not None and request.plan.needs.token_first

    def most(self, wanted: int) -> int:
        """How many of the next ``wanted`` tokens one chunk may hold.

        Rows of one chunk share the key classes of their sequence, so generated rows between which
        a rule changes these are computed one at a time, after preemption too. And all rows of a
        chunk count their moved masses, or none of them does, see :attr:`Chunk.is_counted`.
        """
        if self.plan is None:
            return wanted
        needs, left = self.plan.needs, self.prompt_length - self.computed
        if needs.single_rows:
            wanted = min(wanted, max(left, 1))
        if self.plan.moved_phases and self.computed < self.counted:
            wanted = min(wanted, self.counted - self.computed)
        if needs.last_row_twice and Phase.LAST in self.plan.moved_phases and left > 1:
            wanted = min(wanted, left - 1)
        return wanted

    @property
    def plan(self) -> Plan | None:
        """The request's plan, if it has one."""
        return self.request.plan

    def control_row(self, position: int) -> int:
        """Row of the control tables the query at ``position`` follows."""
        if self.plan is None:
            return 0
        return self.control_rows.get(self.plan.phase(position), 0)

    def control_runs(self, start: int, end: int) -> list[tuple[int, int]]:
        """Rows of the control tables that queries ``start`` to ``end`` follow, with their numbers.

        Neighbours follow different rows.
        """
        if self.plan is None or not self.control_rows:
            return [(0, end - start)]
        runs: list[tuple[int, int]] = []
        for phase, count in self.plan.phases_of(start, end):
            row = self.control_rows.get(phase, 0)
            if runs and runs[-1][0] == row:
                row, before = runs.pop()
                count += before
            runs.append((row, count))
        return runs

    def count(self, source: int, name: str, times: int = 1) -> None:
        """Note that a rule of the plan did something."""
        self.counts[source, name] = self.counts.get((source, name), 0) + times

    def repeat(self, source: int) -> None:
        """Note a pass beside its own that the intervention at ``source`` asked for."""
        self.repeats[source] = self.repeats.get(source, 0) + 1

    def count_rows(self, end: int) -> None:
        """Note that query rows up to ``end`` have been computed under the plan."""
        if self.plan is not None:
            for phase, rows in self.plan.phases_of(self.counted, end):
                self.rows_touched[phase] = self.rows_touched.get(phase, 0) + rows
        self.counted = max(self.counted, end)
