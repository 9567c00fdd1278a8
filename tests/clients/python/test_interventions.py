import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade_client import Intervention, InvalidInput
from saccade_client.interventions import entries
from saccade_interventions import shorthand

GOOD = [
    ("var", {}),
    (" var ", {}),
    ("var:", {}),
    ("var:move_fraction=0.6,rho=0.5", {"move_fraction": 0.6, "rho": 0.5}),
    ("a:layers=[2,3],x=1", {"layers": [2, 3], "x": 1}),
    ("a:layers=2|3,x=1", {"layers": [2, 3], "x": 1}),
    ("a:layers=2|,x=b|c", {"layers": [2], "x": ["b", "c"]}),
    ("a:layers=[1]|[2]", {"layers": [[1], [2]]}),
    ('a:heads={"8":[3,7]}', {"heads": {"8": [3, 7]}}),
    ("a:rows=last+generated,on=true", {"rows": "last+generated", "on": True}),
    ("a:on=True,off=false,none=null", {"on": "True", "off": False, "none": None}),
    ("a:artifact=sha256:00ff", {"artifact": "sha256:00ff"}),
    ('a:text="x, y=z|w"', {"text": "x, y=z|w"}),
    (r'a:text="q\",",x=1', {"text": 'q",', "x": 1}),
    ("a: x = 1.5 , y = -1e-3", {"x": 1.5, "y": -0.001}),
    ("a:x=.5,y=007,z=1st", {"x": ".5", "y": "007", "z": "1st"}),
    ("a:x=b],y=c=d", {"x": "b]", "y": "c=d"}),
    ("a:self=1", {"self": 1}),
    ('a:x="",y=[]', {"x": "", "y": []}),
]


@pytest.mark.parametrize(("text", "parameters"), GOOD)
def test_shorthand(text, parameters):
    assert Intervention.parse(text).parameters == parameters


@pytest.mark.parametrize("text", [text for text, _ in GOOD])
def test_shorthand_is_what_the_command_line_reads(text):
    assert Intervention.parse(text).entry() == shorthand.parse(text)


words = st.text(st.characters(codec="utf-8"), max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words
values = st.recursive(
    scalars.filter(lambda value: value not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["layers", "rows", "x_1"]), values))
@settings(max_examples=200, deadline=None)
def test_shorthand_reads_back_what_the_command_line_writes(parameters):
    one = Intervention("var", **parameters)
    assert Intervention.parse(shorthand.dump(one.entry())) == one


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not ''"),
        (":x=1", "not ''"),
        ("1var", "not '1var'"),
        ("var:rho", "'rho' is not a parameter"),
        ("var:rho=1,", "'' is not a parameter"),
        ("var:=1", "'=1' is not a parameter"),
        ("var:layers=2,3", r"layers=\[2,3\]"),
        ("var:rho=", "a value is missing"),
        ("var:rho=,x=1", "a value is missing"),
        ("var:layers=2||3", "a value is missing"),
        ("var:rho=1,rho=2", "'rho' is given twice"),
        ("var:method=pai", "'method' is given twice"),
        ("var:layers=[2,3", "is not JSON"),
        ("var:heads={8:[1]}", "is not JSON"),
        ('var:text="open', "is not JSON"),
        ("var:rho=NaN", "NaN is no number"),
        ("var:rho=-Infinity", "-Infinity is no number"),
        ("var:layers=" + "[" * 100_000, "is not JSON"),
    ],
)
def test_bad_shorthand(text, reason):
    with pytest.raises(InvalidInput, match=reason):
        Intervention.parse(text)


def test_the_three_forms_are_one():
    flat = {"method": "var", "move_fraction": 0.6, "layers": [2, 3]}
    typed = Intervention("var", move_fraction=0.6, layers=range(2, 4))
    assert entries([flat, typed, "var:move_fraction=0.6,layers=2|3"]) == [flat] * 3
    assert entries(typed) == entries(flat) == [flat]
    assert entries([]) == []


def test_an_intervention_is_a_value():
    one = Intervention("var", layers=[1], rho=0.5)
    assert one == Intervention("var", rho=0.5, layers=(1,))
    assert hash(one) == hash(Intervention("var", rho=0.5, layers=[1]))
    assert one != Intervention("var")
    assert one != "var"
    assert repr(one) == "Intervention('var', layers=[1], rho=0.5)"
    assert (one.method, one.parameters) == ("var", {"layers": [1], "rho": 0.5})


def test_nothing_given_or_returned_is_shared():
    layers = [1]
    one = Intervention("var", layers=layers)
    layers.append(2)
    one.entry()["layers"].append(3)
    one.parameters["layers"].append(4)
    assert one.entry() == {"method": "var", "layers": [1]}


def test_arrays_and_their_scalars_become_json():
    one = Intervention("var", layers=np.arange(2), rho=np.float64(0.5), heads={8: (np.int64(3),)})
    assert one.entry() == {"method": "var", "layers": [0, 1], "rho": 0.5, "heads": {"8": [3]}}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (3, "are a list, not int"),
        ([None], r"interventions\[0\] is NoneType"),
        (["var", {"rho": 1}], r"interventions\[1\] lacks 'method'"),
        ([{"method": "var", "layers": [object()]}], r"interventions\[0\].layers\[0\] is object"),
        ({"method": 3}, "lacks 'method'"),
    ],
)
def test_bad_lists(given, reason):
    with pytest.raises(InvalidInput, match=reason):
        entries(given)
