"""Hostile and mistaken requests: the right code, the exact path, a message that helps."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Prompt
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.registry import Registry
from saccade_testing.plans import context_of

INVALID = Code.INVALID_PARAMS
LAYER = Code.LAYER_OUT_OF_RANGE
HEAD = Code.HEAD_OUT_OF_RANGE
PASTA = {"method": "pasta", "spans": [[0, 1]], "layers": [1]}
BAD_NUMBERS = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "1e30": 1e30,
    "negative": -1,
    "text": "0.5",
    "true": True,
    "huge": 10**400,
    "null": None,
    "list": [0.5],
}


def refused(registry, value):
    with pytest.raises(InterventionError) as caught:
        registry.parse(value)
    return caught.value


@pytest.mark.parametrize("value", [None, []])
def test_nothing(registry: Registry, value):
    assert registry.parse(value) == ()


@pytest.mark.parametrize("bad", BAD_NUMBERS)
@pytest.mark.parametrize(
    ("method", "field"),
    [("var", "move_fraction"), ("var", "rho"), ("var", "min_visual_mass"), ("pai", "alpha")],
)
def test_a_strength_is_a_number_in_bounds(registry: Registry, method, field, bad):
    error = refused(registry, [{"method": method, field: BAD_NUMBERS[bad]}])
    assert (error.code, error.param, error.status) == (INVALID, f"interventions[0].{field}", 400)
    assert len(str(error)) < 200


@pytest.mark.parametrize(
    ("entry", "code", "param"),
    [
        ({"layers": [-1]}, LAYER, "layers[0]"),
        ({"layers": [2, 3, -7]}, LAYER, "layers[2]"),
        ({"layers": [1, 2, 1]}, INVALID, "layers[2]"),
        ({"layers": []}, INVALID, "layers"),
        ({"layers": [2.0]}, INVALID, "layers[0]"),
        ({"layers": [1, 1e9]}, INVALID, "layers[1]"),
        ({"layers": [True]}, INVALID, "layers[0]"),
        ({"layers": ["2"]}, INVALID, "layers[0]"),
        ({"layers": 2}, INVALID, "layers"),
        ({"layers": "all"}, INVALID, "layers"),
        ({"heads": [0, -1]}, HEAD, "heads[1]"),
        ({"heads": []}, INVALID, "heads"),
        ({"heads": {}}, INVALID, "heads"),
        ({"heads": "some"}, INVALID, "heads"),
        ({"heads": 3}, INVALID, "heads"),
        ({"heads": {"3": []}}, INVALID, 'heads["3"]'),
        ({"heads": {"3": [1, 1]}}, INVALID, 'heads["3"][1]'),
        ({"heads": {"3": [0, -1]}}, HEAD, 'heads["3"][1]'),
        ({"heads": {"-3": [0]}}, INVALID, 'heads["-3"]'),
        ({"heads": {"03": [0]}}, INVALID, 'heads["03"]'),
        ({"heads": {"three": [0]}}, INVALID, "heads.three"),
        ({"heads": {"3": "all"}}, INVALID, 'heads["3"]'),
        ({"heads": {"3": [0]}, "layers": [3]}, INVALID, "layers"),
        ({"rows": "promt"}, INVALID, "rows"),
        ({"rows": ""}, INVALID, "rows"),
        ({"rows": "prompt"}, INVALID, "rows"),
        ({"rows": ["last"]}, INVALID, "rows"),
        ({"image_index": -1}, INVALID, "image_index"),
        ({"image_index": 1.0}, INVALID, "image_index"),
        ({"sink_dims": []}, INVALID, "sink_dims"),
        ({"sink_dims": [5, 5]}, INVALID, "sink_dims[1]"),
        ({"sink_dims": list(range(17))}, INVALID, "sink_dims"),
        ({"tau": 0}, INVALID, "tau"),
        ({"require_visual_sink": 1}, INVALID, "require_visual_sink"),
        ({"require_visual_sink": "yes"}, INVALID, "require_visual_sink"),
        ({"include_last_layer": True, "layers": [2]}, INVALID, "include_last_layer"),
        ({"version": "2"}, Code.VERSION_MISMATCH, "version"),
        ({"version": 1}, INVALID, "version"),
        ({"move_fractoin": 0.5}, Code.UNKNOWN_FIELD, "move_fractoin"),
        ({"strength": 0.5}, Code.UNKNOWN_FIELD, "strength"),
        ({"a b": 0.5}, Code.UNKNOWN_FIELD, '["a b"]'),
    ],
)
def test_one_wrong_field_of_var(registry: Registry, entry, code, param):
    error = refused(registry, [{"method": "pai"}, {"method": "var", **entry}])
    path = "interventions[1]" + (param if param.startswith("[") else f".{param}")
    assert (error.code, error.param) == (code, path)


@pytest.mark.parametrize(
    ("entry", "param"),
    [
        ({"spans": [[2, 2]]}, "spans[0]"),
        ({"spans": [[0, 1], [3, 2]]}, "spans[1]"),
        ({"spans": [[-1, 2]]}, "spans[0][0]"),
        ({"spans": [[0]]}, "spans[0]"),
        ({"spans": [[0, 1, 2]]}, "spans[0]"),
        ({"spans": [0, 1]}, "spans[0]"),
        ({"spans": [[0, 1.5]]}, "spans[0][1]"),
        ({"highlight": [""]}, "highlight[0]"),
        ({"highlight": "text"}, "highlight"),
        ({"highlight": ["ok", "\ud800"]}, "highlight[1]"),
        ({"highlight": ["x"] * 65}, "highlight"),
        ({"spans": []}, "highlight"),
        ({"layers": None}, "heads"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": 1.5}, "alpha"),
        ({"mode": "both"}, "mode"),
    ],
)
def test_one_wrong_field_of_pasta(registry: Registry, entry, param):
    error = refused(registry, [{**PASTA, **entry}])
    assert (error.code, error.param) == (INVALID, f"interventions[0].{param}")


@pytest.mark.parametrize(
    ("value", "code", "param"),
    [
        ("var", INVALID, "interventions"),
        ({"method": "var"}, INVALID, "interventions"),
        (3, INVALID, "interventions"),
        (False, INVALID, "interventions"),
        ([{**PASTA, "highlight": ["é" * 33_000]}], Code.SPEC_TOO_LARGE, "interventions"),
        ([None], INVALID, "interventions[0]"),
        (["var"], INVALID, "interventions[0]"),
        ([{"method": "var"}, []], INVALID, "interventions[1]"),
        ([{}], INVALID, "interventions[0].method"),
        ([{"method": None}], INVALID, "interventions[0].method"),
        ([{"method": ["var"]}], INVALID, "interventions[0].method"),
        ([{"method": "vat"}], Code.UNKNOWN_METHOD, "interventions[0].method"),
        ([{"method": "VAR"}], Code.UNKNOWN_METHOD, "interventions[0].method"),
        ([{"method": "__class__"}], Code.UNKNOWN_METHOD, "interventions[0].method"),
        ([{"method": "pai"}] * 17, Code.SPEC_TOO_LARGE, "interventions"),
        ([{**PASTA, "highlight": ["x" * 70_000]}], Code.SPEC_TOO_LARGE, "interventions"),
        ([{"method": "var", "layers": list(range(20_000))}], Code.SPEC_TOO_LARGE, "interventions"),
        ([{"method": "var", "layers": {1}}], INVALID, "interventions"),
    ],
)
def test_a_wrong_list(registry: Registry, value, code, param):
    error = refused(registry, value)
    assert (error.code, error.param) == (code, param)
    assert error.status == (413 if code is Code.SPEC_TOO_LARGE else 400)


def test_numbers_too_long_to_write_down(registry: Registry):
    assert refused(registry, 10**5000).code is INVALID
    assert refused(registry, [10**5000]).code is INVALID


def test_nesting_beyond_reason(registry: Registry):
    value = []
    for _ in range(100_000):
        value = [value]
    assert refused(registry, value).code is INVALID


@pytest.mark.parametrize(
    ("entry", "hint"),
    [
        ({"method": "varr"}, 'did you mean "var"'),
        ({"method": "xyz"}, "known: "),
        ({"method": "var", "move_fractoin": 1}, 'did you mean "move_fraction"'),
        ({"method": "pai", "strength": 1}, "known: alpha, heads"),
        ({"method": "pai", "alpha": 5}, "alpha must be at most 4; got 5"),
        ({"method": "pai", "alpha": None}, "alpha must be a number; got null"),
        ({"method": "pai", "alpha": [True, {"it's": "é" * 200}]}, '[true, {"it\'s": "é'),
        ({"method": "pai", "alpha": "\ud800\n"}, 'alpha must be a number; got "?\\n"'),
        ({"method": "pai", "rows": "promt"}, "prompt, question, last, generated"),
        ({"method": "pasta", "spans": [[0, 1]]}, 'as {"layer": [heads]}'),
    ],
)
def test_messages_help(registry: Registry, entry, hint):
    assert hint in str(refused(registry, [entry]))


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"layers": [6]}, LAYER, "layers[0]"),
        ({"layers": [5, 10**9]}, LAYER, "layers[1]"),
        ({"heads": [3, 4]}, HEAD, "heads[1]"),
        ({"heads": {"1": [0, 9]}}, HEAD, 'heads["1"][1]'),
        ({"heads": {"1": [0], "6": [0]}}, LAYER, 'heads["6"]'),
    ],
)
def test_ranges_of_the_model(registry: Registry, fields, code, param):
    context = context_of(Prompt(6, images=((1, 4),)))
    with pytest.raises(InterventionError) as caught:
        compile_plan(registry.parse([{"method": "pai", **fields}]), context)
    assert (caught.value.code, caught.value.param) == (code, f"interventions[0].{param}")


def test_key_value_heads_are_told_apart(registry: Registry):
    context = context_of(Prompt(6, images=((1, 4),)))
    with pytest.raises(InterventionError, match=r"query heads.*4 in each.*2 key-value heads"):
        compile_plan(registry.parse([{"method": "pai", "heads": [4]}]), context)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
REGISTRY = Registry.discover()
FIELDS = sorted({name for m in REGISTRY.methods.values() for name in m.model_fields})


@settings(deadline=None, max_examples=120)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"method": st.sampled_from(["var", "pai", "pasta"]) | JSON},
            optional={"heads": JSON, "layers": JSON, "spans": JSON, "a.b": JSON},
        )
        | st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4)
        | JSON,
        max_size=3,
    )
    | JSON
)
def test_anything_else_is_refused_in_order(value):
    problem = None
    try:
        REGISTRY.parse(value)
    except InterventionError as error:
        problem = error
    assert problem is None or (problem.message and problem.param.startswith("interventions"))
