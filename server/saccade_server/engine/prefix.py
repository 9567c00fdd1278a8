"""Keys under which full cache pages may be shared.

The keys and values of a token depend on every token before it, on the images among them, and on
every edit that an earlier or own query row went through. So a page's key chains the key of the
page before it with: its tokens, the images it overlaps, and, from the first edited row on, the
program each of its rows followed, the key classes that program saw, and where the prompt ends. A
prefix without edited rows has the key of a plain request, whatever the plan does later; what a plan
edits can only ever be found again by rows that went through the same edits at the same places.
Pages filled while decoding follow the same rule.

Rows may follow what is measured while they run, which no key could name (Needs.own_pages): the
keys of their phases are salted, so that only the sequence itself finds its pages again. A request
may bring a salt for all its pages, too.

A plan may need more of a page than keys and values (Needs.page_extra), such as the sink scores of
its tokens; so may a trace. Pages that have it say so with an *extra* (see pages.py): such a request
finds only those, a plain one finds any.
"""

from __future__ import annotations

import hashlib
from itertools import count, groupby

import msgspec

from saccade_interventions.needs import PageExtra
from saccade_interventions.phases import Phase
from saccade_interventions.plan import Plan
from saccade_kernels.batch import PAGE
from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.sequence import Sequence

_encode = msgspec.msgpack.Encoder().encode

_SALTS = count()
"""For each sequence of this process whose pages, or some of them, are its own."""


SCORED = PageExtra("sink scores of all layers")
"""What a trace that tells sinks apart needs of a prompt's pages; by the model's own dimensions."""


class PageKeyer:
    """Computes the page keys of one sequence, in order."""

    def __init__(self, request: GenerateRequest) -> None:
        self._request = request
        self._plan = request.plan
        self._programs: dict[Phase, str | None] = {}
        self._tags = ""
        self._extra: PageExtra | None = None
        self._salt = request.cache_salt
        if self._plan is not None:
            self._programs = _programs(self._plan)
            self._tags = self._plan.tags_key()
            self._extra = self._plan.needs.page_extra
        if request.trace is not None and request.trace.needs_sinks:
            self._extra = SCORED
        self._edited = self._plan is not None and self._plan.hides
        self._spans = [(i.digest, i.start, i.start + i.length) for i in request.images]
        self._encoded: dict[tuple[int, tuple[tuple[Phase, int], ...]], msgspec.Raw] = {}

    def extend(self, sequence: Sequence, tokens: int) -> None:
        """Append the keys of all full pages among the first ``tokens`` tokens."""
        keys = sequence.page_keys
        parent = keys[-1] if keys else b""
        begun = len(keys) * PAGE
        ids = sequence.ids(begun, tokens).data.cast("B")
        width = ids.nbytes // max(tokens - begun, 1)
        for start in range(begun, tokens - PAGE + 1, PAGE):
            content = [self._images(start), self._edits(start), self._salt]
            own = ids[(start - begun) * width : (start - begun + PAGE) * width]
            parent = hashlib.sha256(b"".join((parent, own, _encode(content)))).digest()
            keys.append(parent)

    @property
    def needs(self) -> str | None:
        """The extra that a page must carry to be of use to this request."""
        return self._extra.key if self._extra is not None else None

    def extra(self, page: int) -> str | None:
        """The extra that this request's page number ``page`` carries once it is full."""
        if self._extra is None:
            return None
        there = self._extra.generated or (page + 1) * PAGE <= len(self._request.tokens)
        return self._extra.key if there else None

    def _images(self, start: int) -> list[tuple[str, int]]:
        """Images that reach into the page, with the page's place relative to their start."""
        return [
            (digest, start - first)
            for digest, first, last in self._spans
            if first < start + PAGE and last > start
        ]

    def _edits(self, start: int) -> msgspec.Raw | None:
        if self._plan is None:
            return None
        phases = self._plan.phases_of(start, start + PAGE)
        self._edited = self._edited or any(self._programs[phase] for phase, _ in phases)
        if not self._edited:
            return None
        # Behind the prompt tokens have another class, and are no sinks unless a rule says so.
        prompt = min(max(self._plan.prompt_length - start, 0), PAGE)
        same = prompt, tuple(phases)
        if same not in self._encoded:
            self._encoded[same] = msgspec.Raw(_encode([self._tags, prompt, self._runs(phases)]))
        return self._encoded[same]

    def _runs(self, phases: list[tuple[Phase, int]]) -> list[tuple[str | None, int]]:
        """The programs of a page's rows, each with how many rows in a row follow it."""
        return [
            (program, sum(rows for _, rows in run))
            for program, run in groupby(phases, lambda run: self._programs[run[0]])
        ]


def _programs(plan: Plan) -> dict[Phase, str | None]:
    salt, own = next(_SALTS), plan.needs.own_pages
    return {
        phase: f"{key} {salt}" if phase in own else key for phase, key in plan.program_keys.items()
    }
