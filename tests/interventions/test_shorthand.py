"""The command line's notation, both ways."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade_interventions import shorthand


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("var", {"method": "var"}),
        ("var:", {"method": "var"}),
        (
            "var:move_fraction=0.6,layers=2|3|4",
            {"method": "var", "move_fraction": 0.6, "layers": [2, 3, 4]},
        ),
        ("pai:layers=2|", {"method": "pai", "layers": [2]}),
        ("pai:layers=[2,3]", {"method": "pai", "layers": [2, 3]}),
        ("pai: heads = all , alpha = 1", {"method": "pai", "heads": "all", "alpha": 1}),
        ("pai:rows=last+generated", {"method": "pai", "rows": "last+generated"}),
        (
            'pasta:heads={"3":[0,1]},spans=[[0,2]]',
            {"method": "pasta", "heads": {"3": [0, 1]}, "spans": [[0, 2]]},
        ),
        ("pasta:highlight=red car|blue", {"method": "pasta", "highlight": ["red car", "blue"]}),
        ('pasta:highlight="a, b | c"|d', {"method": "pasta", "highlight": ["a, b | c", "d"]}),
        (
            'pasta:highlight=["say \\"hi\\", you"]',
            {"method": "pasta", "highlight": ['say "hi", you']},
        ),
        (
            "var:tau=null,require_visual_sink=false",
            {"method": "var", "tau": None, "require_visual_sink": False},
        ),
    ],
)
def test_parse(text, entry):
    assert shorthand.parse(text) == entry
    assert shorthand.parse(shorthand.dump(entry)) == entry


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":alpha=1",
        "pai:alpha",
        "pai:=1",
        "pai:alpha=1,alpha=2",
        "pai:alpha=1,",
        "pai:method=var",
    ],
)
def test_refused(text):
    with pytest.raises(ValueError, match=r"no method|not field=value|given twice"):
        shorthand.parse(text)


def test_dump_is_readable():
    entry = {"method": "var", "layers": [2, 3], "rows": "generated", "tau": 5.0}
    assert shorthand.dump(entry) == "var:layers=[2,3],rows=generated,tau=5.0"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.from_regex(r"[a-z_]+", fullmatch=True), VALUES, max_size=4))
def test_round_trip(fields):
    fields.pop("method", None)
    entry = {"method": "var", **fields}
    assert shorthand.parse(shorthand.dump(entry)) == entry
