"""From counts to what Prometheus reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from saccade_kernels.batch import PAGE
from saccade_server.api.metrics import names
from saccade_server.api.metrics.names import MODEL, Metric
from saccade_server.api.metrics.tally import RequestTally
from saccade_server.engine.counts import Histogram
from saccade_server.engine.request import EngineStats

OPEN_METRICS = "application/openmetrics-text"

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
Values = Mapping[tuple[str, ...], float]


@dataclass(frozen=True, eq=False)
class Exposition:
    """The families of one scrape, as the counts were when it was made."""

    families: tuple[Family, ...]

    def collect(self) -> Iterable[Family]:
        """What a registry asks for."""
        return self.families

    def written(self, accept: str) -> tuple[bytes, str]:
        """Its text and content type, as the client reads them: OpenMetrics or Prometheus's own."""
        registry = CollectorRegistry()
        registry.register(self)
        if OPEN_METRICS not in accept:
            return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4
        # The library's own choice writes colons in names of samples as underscores. No name of ours
        # is to be escaped.
        text: bytes = openmetrics.generate_latest(  # type: ignore[no-untyped-call]
            registry, escaping=openmetrics.ALLOWUTF8
        )
        return text, openmetrics.CONTENT_TYPE_LATEST


def of_requests(tally: RequestTally, model: str) -> Iterator[Family]:
    """What the API knows by itself."""
    for metric, counts in tally.counts.items():
        yield family(metric, model, dict(counts))
    for metric, histogram in tally.histograms.items():
        if metric not in (names.BETWEEN, names.STEP_SIZES):
            yield distribution(metric, model, histogram)


def of_engine(stats: EngineStats, model: str) -> Iterator[Family]:
    """What the engine has said."""
    numbers: dict[Metric, float] = {
        names.RUNNING: stats.running,
        names.WAITING: stats.waiting,
        names.PLANS: stats.plans,
        names.CACHE_USAGE: stats.cache_usage,
        names.PREFIX_QUERIES: stats.prefix_queries,
        names.PREFIX_HITS: stats.prefix_hits,
        names.PREEMPTIONS: stats.preemptions,
        names.PROMPT_TOKENS: stats.prompt_tokens,
        names.GENERATED: stats.generated_tokens,
        names.IMAGES_ENCODED: stats.image_encodes,
    }
    for metric, value in numbers.items():
        yield family(metric, model, {(): value})
    steps = [form for form in stats.forms if not form.stage]
    yield family(
        names.STEPS,
        model,
        {(f.form, str(f.size), str(f.classes), f.sites, f.search): f.count for f in steps},
    )
    stages = [form for form in stats.forms if form.stage]
    yield family(names.STAGES, model, {(f.stage, str(f.size)): f.count for f in stages})
    if stats.between_tokens is not None:
        yield distribution(names.BETWEEN, model, stats.between_tokens)
    if stats.step_tokens is not None:
        yield distribution(names.STEP_SIZES, model, stats.step_tokens)


def of_cache(tokens: int, model: str) -> Family:
    """What the cache was made for."""
    return family(names.CACHE_INFO, model, {(str(PAGE), str(-(-tokens // PAGE))): 1})


def family(metric: Metric, model: str, values: Values) -> Family:
    """A gauge or counter with a value for each of its labels' values."""
    name, labelled = metric.full_name, (MODEL, *metric.labels)
    made: GaugeMetricFamily | CounterMetricFamily
    if metric.kind == "gauge":
        made = GaugeMetricFamily(name, metric.about, labels=labelled)
    else:
        made = CounterMetricFamily(name, metric.about, labels=labelled)
    for labels, value in values.items():
        made.add_metric((model, *labels), value)
    return made


def distribution(metric: Metric, model: str, found: Histogram) -> Family:
    """A histogram, whose buckets hold what lies up to their bounds."""
    made = HistogramMetricFamily(metric.full_name, metric.about, labels=(MODEL, *metric.labels))
    total, buckets = 0, []
    for bound, count in zip((*found.bounds, float("inf")), found.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), total))
    made.add_metric((model,), buckets, sum_value=found.total)
    return made
