"""What a request that may reject candidates says in its usage; and receipts of chosen edits."""

import pytest

from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context, Prompt
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.registry import Registry
from saccade_server.engine.request import Counter, Receipt
from saccade_server.requests.receipts import Run, applied, published
from saccade_testing.api.bodies import PICTURE, image_messages
from saccade_testing.api.server import Server

REGISTRY = Registry.discover()
MODEL = ModelFacts(layers=4, heads=4, kv_heads=2, head_dim=8, hidden_size=32, sink_dims=(3,))
ROWS = {"prefix": 6, "question": 3, "last": 1, "generated": 5}


def made(*entries):
    interventions = REGISTRY.parse(list(entries))
    prompt = Prompt(length=10, images=((2, 6),))
    return interventions, compile_plan(interventions, Context(MODEL, prompt))


def test_draws_and_rejections_are_summed_over_sequences():
    _, plan = made({"method": "pai"}, {"method": "sgrs"})
    counters = (Counter(1, "draws", 9), Counter(1, "rejections", 4), Counter(0, "draws", 50))
    runs = [Run(plan, Receipt(ROWS, (), counters)), Run(plan, Receipt(ROWS)), Run(plan)]
    assert published(runs) == {"saliency_draws": 9, "saliency_rejections": 4}
    assert published([Run(made({"method": "pai"})[1], Receipt(ROWS, (), counters))]) is None
    assert published([Run(None)]) is None


@pytest.mark.parametrize("stream", [False, True])
def test_usage_on_the_wire(server: Server, stream):
    """The scripted engine says one draw and one rejection a token."""

    def usage(interventions):
        fields = {"messages": image_messages(PICTURE), "interventions": interventions}
        if stream:
            return server.events(stream_options={"include_usage": True}, **fields)[-2]["usage"]
        return server.chat(**fields).json()["usage"]

    found = usage([{"method": "sgrs"}])
    count = found["completion_tokens"]
    details = {"saliency_draws": count, "saliency_rejections": count}
    assert found["completion_tokens_details"] == details
    assert "completion_tokens_details" not in usage([{"method": "pai"}])
    assert "completion_tokens_details" not in usage([{"method": "sgrs", "alpha": 0}])


@pytest.mark.parametrize(
    ("counters", "heads", "evaluated", "status"),
    [
        ((Counter(0, "unsure", 1),), 4 * 4, 4 * 4, "applied"),
        ((Counter(0, "sure", 1),), 4 * 4, 0, "no_effect"),
        ((), 4 * 4, 0, "no_effect"),
    ],
)
def test_edits_that_depend_on_confidence_count_if_they_ran(counters, heads, evaluated, status):
    """A weight of 1 is no edit: being sure leaves the row alone."""
    interventions, plan = made({"method": "adaptvis", "w1": 0.5, "w2": 1})
    (entry,) = applied(interventions, interventions, [Run(plan, Receipt(ROWS, (), counters))])
    assert (entry["layers"], entry["heads"]) == ([0, 1, 2, 3], heads)
    assert entry["edits"]["evaluated"] == evaluated
    assert entry["rows"]["prompt"] == (1 if evaluated else 0)
    assert entry["status"] == status
