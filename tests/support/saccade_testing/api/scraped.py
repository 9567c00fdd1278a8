"""A scripted engine that counts, and what a server's /metrics says."""

from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from saccade_server.engine.counts import BETWEEN_TOKENS, STEP_TOKENS, FormCount, Histogram
from saccade_server.engine.request import EngineStats
from saccade_testing.api.bodies import MODEL
from saccade_testing.api.fakes import FakeEngine
from saccade_testing.api.server import Server


class Counting(FakeEngine):
    """Says of itself what a real engine says."""

    async def stats(self) -> EngineStats:
        between, sizes = Histogram.of(BETWEEN_TOKENS), Histogram.of(STEP_TOKENS)
        between.observe(0.002, 3)
        sizes.observe(16)
        return EngineStats(
            running=len(self.running),
            waiting=2,
            cache_usage=0.25,
            prefix_queries=64,
            prefix_hits=16,
            preemptions=1,
            steps=9,
            prompt_tokens=50,
            generated_tokens=30,
            forms=(
                FormCount(form="mixed", count=4),
                FormCount(form="captured", size=8, classes=2, sites="residuals", count=5),
                FormCount(form="captured", stage="greedy", size=2, count=3),
            ),
            between_tokens=between,
            step_tokens=sizes,
        )


class Scrape(dict[tuple[str, frozenset[tuple[str, str]]], float]):
    """Samples by name and labels; the model's is the same for all."""

    def of(self, name: str, **labels: str) -> float:
        return self.get((f"saccade:{name}", frozenset(labels.items())), 0.0)

    def by(self, name: str, label: str) -> dict[str, float]:
        """Values of a sample by one label."""
        found: dict[str, float] = {}
        for (sample, labels), value in self.items():
            if sample == f"saccade:{name}" and value:
                key = dict(labels)[label]
                found[key] = found.get(key, 0) + value
        return found


def scrape(server: Server, **headers: str) -> Scrape:
    response = server.http.get("/metrics", headers=headers)
    assert response.status_code == 200, response.text
    opened = response.headers["content-type"].startswith("application/openmetrics-text")
    found = Scrape()
    for family in (open_metrics if opened else prometheus)(response.text):
        assert family.documentation
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("model_name") == MODEL
            found[sample.name, frozenset(labels.items())] = sample.value
    return found
