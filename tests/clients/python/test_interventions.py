import numpy as np
import pytest

from saccade_client import Intervention, InvalidInput
from saccade_client.interventions import entries


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("var", {"method": "var"}),
        (" var ", {"method": "var"}),
        ("var:move_fraction=0.6,rho=0.5", {"method": "var", "move_fraction": 0.6, "rho": 0.5}),
        ("a:layers=[2,3],x=1", {"method": "a", "layers": [2, 3], "x": 1}),
        ('a:heads={"8":[3,7]}', {"method": "a", "heads": {"8": [3, 7]}}),
        ("a:rows=last+generated,on=true", {"method": "a", "rows": "last+generated", "on": True}),
        ("a:on=True,off=false,none=null", {"method": "a", "on": True, "off": False, "none": None}),
        ("a:artifact=sha256:00ff", {"method": "a", "artifact": "sha256:00ff"}),
        ('a:text="x, y=z"', {"method": "a", "text": "x, y=z"}),
        ("a: x = .5 , y = -1e-3", {"method": "a", "x": 0.5, "y": -0.001}),
        ("a:x=+3,y=1.,z=007", {"method": "a", "x": 3, "y": 1.0, "z": 7}),
        ("a:x=trueish,y=1st", {"method": "a", "x": "trueish", "y": "1st"}),
        ('a:x="",y=[]', {"method": "a", "x": "", "y": []}),
    ],
)
def test_shorthand(text, entry):
    assert entries(text) == [entry]
    assert type(entries(text)[0].get("x")) is type(entry.get("x"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not ''"),
        (":x=1", "not ''"),
        ("1var", "not '1var'"),
        ("var:", "'' is not a parameter"),
        ("var:rho", "'rho' is not a parameter"),
        ("var:rho=1,", "'' is not a parameter"),
        ("var:layers=2,3", r"layers=\[2,3\]"),
        ("var:rho=", "a value is missing"),
        ("var:rho=,x=1", "a value is missing"),
        ("var:rho=1,rho=2", "'rho' is given twice"),
        ("var:method=pai", "'method' is given twice"),
        ("var:layers=[2,3", r"is not JSON"),
        ('var:text="open', "is not JSON"),
    ],
)
def test_bad_shorthand(text, reason):
    with pytest.raises(InvalidInput, match=reason):
        Intervention.parse(text)


def test_the_three_forms_are_one():
    flat = {"method": "var", "move_fraction": 0.6, "layers": [2, 3]}
    typed = Intervention("var", move_fraction=0.6, layers=range(2, 4))
    assert entries([flat, typed, "var:move_fraction=0.6,layers=[2,3]"]) == [flat] * 3
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
