"""What the API counts of requests that have ended. An observer; nothing is done for a token."""

from __future__ import annotations

from collections import Counter, defaultdict

from starlette.datastructures import Headers

from saccade_server.api.layers.record import Record, SequenceRecord
from saccade_server.api.metrics import names
from saccade_server.api.metrics.names import Metric
from saccade_server.engine.counts import Histogram

REASONS = ("stop", "length", "abort", "error")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"})
"""Of HTTP; clients may call theirs what they like."""
OTHER = "other"
UNKNOWN = "unknown"
"""A method that there is not, named in a refused request."""

Labels = tuple[str, ...]


class RequestTally:
    """Counters by metric and labels, and histograms.

    Labels come from finite sets: routes, statuses and codes of ours, methods, profiles, names of
    keys.
    """

    def __init__(self, longest: int) -> None:
        """``longest``: the most tokens that a sequence may have."""
        tokens = names.token_bounds(longest)
        self.counts: defaultdict[Metric, Counter[Labels]] = defaultdict(Counter)
        self.histograms = {
            metric: Histogram.of(metric.bounds or tokens)
            for metric in vars(names).values()
            if isinstance(metric, Metric) and metric.kind == "histogram"
        }
        for reason in REASONS:
            self.counts[names.FINISHED][reason,] = 0

    def begun(self, record: Record, headers: Headers) -> None:
        """Nothing counts before it has ended."""

    def ended(self, record: Record) -> None:
        """Count a request, and the sequences of its answer."""
        route = record.route or OTHER
        method = record.method if record.method in METHODS else OTHER
        status = str(record.status)
        self._count(names.HTTP, (route, method, status))
        if record.error:
            self._count(names.ERRORS, (route, status, record.error))
        if record.left:
            self._count(names.LEFT, (route,))
        if record.key:
            self._count(names.BY_KEY, (record.key,))
        if record.blamed:
            self._refused(record)
        if record.n:
            self._answered(record)

    def refused(self, code: str) -> None:
        """Count a connection that was refused before there was a request."""
        self._count(names.REFUSED_CONNECTIONS, (code,))

    def checked_grammar(self, seconds: float) -> None:
        """Count a grammar that was made and checked, whatever came of it."""
        self._observe(names.GRAMMAR_CHECKS, seconds)

    def refused_grammar(self, kind: str, code: str) -> None:
        """Count a request that was refused because of its grammar."""
        self._count(names.GRAMMAR_REFUSALS, (kind, code))

    def _answered(self, record: Record) -> None:
        """Count an answer whose sequences went to the engine, however it ended."""
        self._observe(names.COPIES_ASKED, record.n)
        self._observe(names.E2E_TIME, record.seconds)
        if record.first_token:
            self._observe(names.FIRST_TOKEN_TIME, record.first_token - record.began)
        for sequence in record.sequences:
            self._sequence(sequence)
        if record.profile:
            self._count(names.BY_PROFILE, (record.profile,))
        if record.key:
            self._count(names.KEY_TOKENS, (record.key, "prompt"), record.prompt_tokens)
            self._count(names.KEY_TOKENS, (record.key, "completion"), record.completion_tokens)
        if record.grammar:
            self._count(names.GRAMMAR_REQUESTS, (record.grammar,))
            for metric, counts in (
                (names.CONSTRAINED, (each.constrained for each in record.sequences)),
                (names.FORCED, (each.forced for each in record.sequences)),
            ):
                self._count(metric, (record.grammar,), sum(counts))
        if record.interventions:
            self._under(record)

    def _sequence(self, sequence: SequenceRecord) -> None:
        self._count(names.FINISHED, (sequence.finish_reason,))
        self._observe(names.SEQUENCE_PROMPT, sequence.prompt_tokens)
        self._observe(names.SEQUENCE_GENERATED, sequence.completion_tokens)
        self._observe(names.MAX_TOKENS, sequence.max_tokens)
        timing = sequence.timing
        if timing is None:
            return
        self._observe(names.QUEUE_TIME, timing.queued)
        if timing.prompt is not None and timing.decode is not None:
            self._observe(names.PREFILL_TIME, timing.prompt)
            self._observe(names.DECODE_TIME, timing.decode)
            self._observe(names.INFERENCE_TIME, timing.prompt + timing.decode)

    def _under(self, record: Record) -> None:
        """Count an answer under interventions; a method that is there twice counts once."""
        for method in dict.fromkeys(record.interventions):
            self._count(names.METHOD_REQUESTS, (method,))
            self._count(names.METHOD_TOKENS, (method,), record.completion_tokens)
        extra = record.extra_passes
        for place, method in enumerate(record.interventions):
            counters = record.counters.get(place, {})
            self._count(names.REJECTIONS, (method,), counters.get("rejections", 0))
            self._count(names.FALLBACKS, (method,), counters.get("fallbacks", 0))
            self._count(names.EXTRA, (method,), extra.get(place, 0))
            self._count(names.LOST, (method,), 0)  # a series that begins above 0 tells less
        for method in record.lost:
            self._count(names.LOST, (method,))

    def _refused(self, record: Record) -> None:
        for method in dict.fromkeys(record.blamed):
            self._count(names.METHOD_REFUSALS, (method or UNKNOWN, record.error))

    def _count(self, metric: Metric, labels: Labels, times: int = 1) -> None:
        self.counts[metric][labels] += times

    def _observe(self, metric: Metric, value: float) -> None:
        self.histograms[metric].observe(value)
