"""A receipt says what ran: sites from the plan, rows and moves from the engine."""

import pytest

from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context, Prompt
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.registry import Registry
from saccade_interventions.rules import MeasuredHeads
from saccade_server.engine.request import Counter, Receipt, SiteCount
from saccade_server.requests.receipts import Run, applied, fingerprint, published

REGISTRY = Registry.discover()
FACTS = ModelFacts(layers=4, heads=4, kv_heads=2, head_dim=8, hidden_size=32, sink_dims=(3,))
PROMPT = Prompt(length=10, images=((2, 6),))
ROWS = {"prefix": 6, "question": 3, "last": 1, "generated": 5}

PAI = {"method": "pai", "layers": [1, 2], "heads": [0, 3]}
VAR = {"method": "var", "layers": [2], "rows": "generated"}


def entries(*requested, receipt=None, cached=0, copies=1):
    interventions = REGISTRY.parse(list(requested))
    plan = compile_plan(interventions, Context(FACTS, PROMPT))
    return applied(interventions, interventions, [Run(plan, receipt, cached)] * copies)


def test_a_score_edit():
    (entry,) = entries(PAI, receipt=Receipt(ROWS))
    assert entry["method"] == "pai"
    assert entry["version"] == "1"
    assert entry["fingerprint"].startswith("sha256:")
    assert entry["layers"] == [1, 2]
    assert entry["heads"] == 4
    assert entry["rows"] == {"prompt": 1, "generated": 5, "cached": 0}
    assert entry["edits"] == {"evaluated": 4 * 6, "moved": None}
    assert entry["status"] == "applied"


def test_a_mass_edit_that_moved():
    receipt = Receipt(ROWS, (SiteCount(2, 1, 3), SiteCount(2, 3, 1), SiteCount(3, 0, 9)))
    (entry,) = entries(VAR, receipt=receipt)
    assert entry["rows"] == {"prompt": 0, "generated": 5, "cached": 0}
    assert entry["edits"] == {"evaluated": 4 * 5, "moved": 4}
    assert entry["status"] == "applied"


def test_a_mass_edit_whose_gates_stayed_shut():
    (entry,) = entries(VAR, receipt=Receipt(ROWS))
    assert entry["edits"]["moved"] == 0
    assert entry["status"] == "no_effect"


def test_two_mass_edits_at_one_place_in_different_rows():
    early, late = {**VAR, "rows": "question"}, VAR
    alone = entries(early, late, receipt=Receipt({"generated": 5}, (SiteCount(2, 1, 3),)))
    assert [entry["status"] for entry in alone] == ["no_effect", "applied"]
    assert [entry["edits"]["moved"] for entry in alone] == [0, 3]
    both = entries(early, late, receipt=Receipt(ROWS, (SiteCount(2, 1, 3),)))
    assert [entry["status"] for entry in both] == ["unconfirmed"] * 2
    assert [entry["edits"]["moved"] for entry in both] == [None] * 2
    neither = entries(early, late, receipt=Receipt(ROWS))
    assert [entry["status"] for entry in neither] == ["no_effect"] * 2


def test_a_place_of_its_own_proves_an_edit():
    wide, narrow = {**VAR, "layers": [2, 3]}, {**VAR, "rows": "question"}
    receipt = Receipt(ROWS, (SiteCount(2, 1, 3), SiteCount(3, 1, 2)))
    first, second = entries(narrow, wide, receipt=receipt)
    assert (first["status"], second["status"]) == ("unconfirmed", "applied")
    assert first["edits"]["moved"] is second["edits"]["moved"] is None


def test_no_rows_of_that_kind():
    (entry,) = entries({**PAI, "rows": "generated"}, receipt=Receipt({"last": 1}))
    assert entry["rows"]["generated"] == 0
    assert entry["status"] == "no_effect"


def test_strength_zero():
    (entry,) = entries({**PAI, "alpha": 0})
    assert entry["status"] == "neutral"
    assert (entry["layers"], entry["heads"], entry["edits"]["evaluated"]) == ([], 0, 0)


def test_without_a_receipt_nothing_is_claimed():
    (entry,) = entries(PAI)
    assert entry["status"] == "unconfirmed"
    assert entry["edits"]["evaluated"] == 0


def test_rows_from_the_cache():
    prompt = {**VAR, "rows": "question+generated"}
    (entry,) = entries(prompt, receipt=Receipt(ROWS), cached=8)
    assert entry["rows"] == {"prompt": 4, "generated": 5, "cached": 2}
    assert entry["status"] == "cached"
    (entry,) = entries({**PAI, "rows": "prompt"}, receipt=Receipt(ROWS), cached=10)
    assert entry["rows"] == {"prompt": 10, "generated": 0, "cached": 10}
    assert entry["status"] == "applied"


def test_several_interventions_and_sequences():
    first, second, third = entries(PAI, {**PAI, "alpha": 0}, VAR, receipt=Receipt(ROWS), copies=2)
    assert [entry["index"] for entry in (first, second, third)] == [0, 1, 2]
    assert [entry["status"] for entry in (first, second, third)] == [
        "applied",
        "neutral",
        "no_effect",
    ]
    assert first["rows"] == {"prompt": 2, "generated": 10, "cached": 0}


def test_the_fingerprint_is_of_the_content():
    first = fingerprint(REGISTRY.parse([PAI, VAR]))
    reordered = {key: PAI[key] for key in reversed(PAI)}
    assert first == fingerprint(REGISTRY.parse([reordered, VAR]))
    assert first != fingerprint(REGISTRY.parse([VAR, PAI]))
    assert first != fingerprint(REGISTRY.parse([{**PAI, "alpha": 1}, VAR]))


VHR = {"method": "vhr", "rows": "last+generated"}


def test_gains_that_were_measured_are_head_edits():
    found = MeasuredHeads(((1, (0, 3)), (2, ()), (3, (1,))), source=0)
    (entry,) = entries(VHR, receipt=Receipt(ROWS, findings=(found,)))
    assert entry["layers"] == [1, 2, 3]
    assert entry["heads"] == 3
    assert entry["rows"] == {"prompt": 1, "generated": 5, "cached": 0}
    assert entry["edits"] == {"evaluated": 3 * 6, "moved": None}
    assert entry["measured"] == {
        "heads": {"1": [0, 3], "2": [], "3": [1]},
        "vhd": None,
        "t_vhd": None,
    }
    assert entry["status"] == "applied"


def test_nothing_was_chosen():
    found = MeasuredHeads(((1, ()),), ((0.5, 0.5),), 1.0, source=1)
    other, entry = entries(PAI, VHR, receipt=Receipt(ROWS, findings=(found,)))
    assert entry["status"] == "no_effect"
    assert entry["measured"] == {"heads": {"1": []}, "vhd": [[0.5, 0.5]], "t_vhd": 1.0}
    assert other["measured"] is None


ADAPTVIS = {"method": "adaptvis", "w1": 1, "w2": 3}
SGRS = {"method": "sgrs", "layers": [1]}


@pytest.mark.parametrize(
    ("entry", "counters", "status"),
    [
        (ADAPTVIS, {"unsure": 1}, "no_effect"),
        (ADAPTVIS, {"sure": 1}, "applied"),
        (SGRS, {"draws": 6}, "no_effect"),
        (SGRS, {"draws": 6, "rejections": 1}, "applied"),
        (SGRS, {"draws": 6, "fallbacks": 1}, "applied"),
        ({"method": "dola"}, {"contrasted": 6}, "applied"),
    ],
)
def test_counting_alone_is_no_effect(entry, counters, status):
    found = tuple(Counter(0, name, value) for name, value in counters.items())
    (told,) = entries(entry, receipt=Receipt(ROWS, counters=found))
    assert told["counters"] == counters
    assert told["status"] == status


@pytest.mark.parametrize("include_self", [False, True])
def test_a_first_generated_row_without_recent_keys_is_not_one_of_its_rows(include_self):
    locore = {"method": "locore", "region": "generated", "include_self": include_self}
    for generated in (0, 1, 3):
        receipt = Receipt({**ROWS, "generated": generated})
        (entry,) = entries(locore, receipt=receipt)
        rows = generated if include_self else max(generated - 1, 0)
        assert entry["rows"]["generated"] == rows
        assert entry["edits"]["evaluated"] == rows * entry["heads"]
        assert entry["status"] == ("applied" if rows else "no_effect")


def made(*entries):
    interventions = REGISTRY.parse(list(entries))
    return interventions, compile_plan(interventions, Context(FACTS, PROMPT))


def test_draws_and_rejections_are_summed_over_sequences():
    _, plan = made({"method": "pai"}, {"method": "sgrs"})
    counters = (Counter(1, "draws", 9), Counter(1, "rejections", 4), Counter(0, "draws", 50))
    runs = [Run(plan, Receipt(ROWS, (), counters)), Run(plan, Receipt(ROWS)), Run(plan)]
    assert published(runs) == {"saliency_draws": 9, "saliency_rejections": 4}
    assert published([Run(made({"method": "pai"})[1], Receipt(ROWS, (), counters))]) is None
    assert published([Run(None)]) is None


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
