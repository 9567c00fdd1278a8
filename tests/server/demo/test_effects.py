"""The rates that ship are those of the committed benchmark."""

import json
from pathlib import Path

from saccade_server.demo.effects import METRICS, PLAIN, SHOWN, SPLIT, document, effects, extract

ROOT = Path(__file__).parents[3]


def test_what_ships_is_what_was_measured() -> None:
    shipped = document()
    measured = json.loads((ROOT / shipped["source"]).read_text())
    assert extract(measured, shipped["source"]) == shipped
    by_name = {setting["name"]: setting for setting in measured["settings"]}
    for name, effect in effects(shipped).items():
        metrics = by_name[name]["splits"][SPLIT.value]
        for share, metric in zip((effect.absent, effect.exact), METRICS, strict=True):
            figures = metrics[metric]
            assert (share.value, share.low, share.high) == (
                figures["value"],
                figures["low"],
                figures["high"],
            )
            if name == PLAIN:
                assert share.change is None
            else:
                assert share.change is not None
                assert share.change.value == figures["change"]["value"]
    assert tuple(shipped["settings"]) == SHOWN


def test_the_method_that_is_shown_first_helps_beyond_chance() -> None:
    """What a newcomer sees on one image must be what happens on held-out ones."""
    found = effects(document())
    vcd = found["vcd"]
    assert vcd.verdict == "helps"
    assert vcd.absent.change is not None
    assert vcd.absent.change.high < 0
    assert vcd.exact.change is not None
    assert vcd.exact.change.low > 0
    assert found["var"].verdict == "changes no answer"
    assert found["pai"].verdict == "hurts"
    assert all(not setting["interventions"][0].keys() - {"method"} for setting in
               list(document()["settings"].values())[1:])  # fmt: skip
