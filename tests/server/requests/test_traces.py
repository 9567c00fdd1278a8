"""From options to readings and back to arrays: what each kind asks for and becomes."""

import numpy as np
import pytest

from saccade_interventions.artifacts import read_artifact, write_artifact
from saccade_interventions.context import Prompt
from saccade_interventions.errors import InterventionError
from saccade_interventions.image_views import NOWHERE, ImageView
from saccade_kernels.thresholds import default_threshold
from saccade_server.engine.traces.readers import READERS
from saccade_server.requests.traces.kinds import RESOLVERS
from saccade_server.requests.traces.options import KINDS, TraceOptions
from saccade_testing.traced_plans import (
    BLIND,
    MODEL,
    PROMPT,
    TEXT,
    TOKENS,
    VIEWS,
    arrays,
    filled,
    plan,
    refused,
    scope,
)


def test_every_kind_is_resolved_and_read():
    assert RESOLVERS.keys() == KINDS.keys()
    assert KINDS.keys() | {"max_bytes", "encoding", "delivery"} == TraceOptions.model_fields.keys()
    text = "a USER: b" + "." * 16
    offsets = tuple((at, at + 1) for at in range(25))
    prompt = Prompt(25, ((12, 16),), text, offsets, (0,), (ImageView(0, (12, 16), 2, 2, (4, 4)),))
    asked = dict.fromkeys(KINDS, True) | {
        "projections": {"directions": [[1.0] * 16]},
        "token_shares": {"tokens": [[1]]},
        "heatmaps": {"sinks": "mark"},
    }
    found = plan(scope(prompt=prompt, vocabulary=9), **asked)
    readers = {reader.kind for reader in READERS}
    assert {type(reading) for reading in found.trace.readings} <= readers
    names = [spec.name for spec in found.arrays]
    assert len(set(names)) == len(names)
    assert {name.partition(".")[0] for name in names} == KINDS.keys() | {"t_vhd"}


def test_classes_are_in_the_order_that_is_promised():
    found = filled(masses={"layers": [1], "heads": [2], "reduce": []})["masses"]
    axes = {axis.name: axis.coordinates for axis in found.spec.axes}
    assert list(axes) == ["row", "layer", "head", "class"]
    assert axes["class"] == ("image", "sinks", "question", "recent", "rest")
    # The engine's columns are sinks, recent, image, question, rest; the last digits number them.
    assert np.rint(found.values[0, 0, 0] * 64**3 % 64).tolist() == [2, 0, 3, 1, 4]
    (reading,) = plan(masses=True).trace.readings
    assert reading.keys == (PROMPT.images, ((19, 25),))
    assert (reading.sinks, reading.recent) == ("group", 8)
    assert reading.threshold == default_threshold(16)
    assert reading.over == {"head"}


def test_classes_that_are_not_there():
    kept = plan(masses={"sinks": "keep", "recent": 0})
    assert kept.arrays[0].axes[-1].coordinates == ("image", "question", "rest")
    assert kept.trace.readings[0].sinks == "keep"
    unknown = plan(scope(model=BLIND, prompt=TEXT), masses={"tau": 3.0})
    assert unknown.arrays[0].axes[-1].coordinates == ("image", "question", "recent", "rest")
    assert unknown.trace.readings[0].keys == ((), ((0, 25),))
    assert plan(masses={"tau": 3}).trace.readings[0].threshold == 3


def test_every_cell_has_the_share_of_its_token():
    found = filled(heatmaps={"layers": [2], "heads": [1], "reduce": []})
    assert list(found) == ["heatmaps.0.0", "heatmaps.0.1", "heatmaps.1"]
    for array, view in zip(found.values(), VIEWS, strict=True):
        assert array.values.shape == (TOKENS, 1, 1, view.rows, view.columns)
        keys = np.rint((array.values * np.float32(64**3)) % 64)
        there = view.positions != NOWHERE
        assert (keys[..., there] == view.positions[there]).all()
        assert (array.values[..., ~there] == 0).all()
        assert [axis.coordinates for axis in array.spec.axes[-2:]] == [None, None]
    assert not (VIEWS[1].positions != NOWHERE).all()
    (reading,) = plan(heatmaps={"images": [1]}).trace.readings
    assert reading.keys == (((17, 19),),)
    assert reading.each


@pytest.mark.parametrize("sinks", ["mark", "drop"])
def test_cells_that_are_sinks_are_marked(sinks):
    found = plan(heatmaps={"layers": [0, 2], "sinks": sinks, "tau": 12.5})
    heat, scored = found.trace.readings
    assert heat.sinks == {"mark": "keep", "drop": "drop"}[sinks]
    assert heat.threshold == 12.5
    assert (scored.rows, scored.layers) == ((0, 25), (0, 2))
    made = arrays(found)
    assert len(made) == 6
    for number, view in zip(("0.0", "0.1", "1"), VIEWS, strict=True):
        marks = made[f"heatmaps.{number}.sinks"]
        assert marks.values.dtype == np.uint8
        # The fake's score of a row is its position and a little more, by layer.
        assert np.array_equal(marks.values[0], view.positions >= 13)
        assert marks.values.shape == (2, view.rows, view.columns)


def test_keys_and_their_coordinates():
    for keys, places in (
        ("prompt", range(25)),
        ("image", [*range(2, 10), *range(12, 15), *range(16, 19)]),
        ("question", range(19, 25)),
        ("answer", range(25, 30)),
        ("all", range(30)),
        ([[1, 3], [28, 30]], [1, 2, 28, 29]),
    ):
        for kind in ("attention", "columns"):
            found = filled(**{kind: {"keys": keys, "layers": [0], "heads": [0]}})[kind]
            assert found.spec.axes[-1].coordinates == tuple(places)
    attention = filled(attention={"keys": [[1, 3]], "layers": [0], "reduce": []})["attention"]
    assert np.rint(attention.values[0, 0, 0] * 64**3 % 64).tolist() == [1, 2]


def test_keys_behind_an_answer_that_ended_are_cut_off():
    found = filled(3, attention={"keys": "all"}, columns={"keys": [[0, 2], [26, 30]]})
    assert found["attention"].spec.axes[-1].coordinates == tuple(range(27))
    assert found["attention"].values.shape == (3, 3, 27)
    assert found["columns"].spec.axes[-1].coordinates == (0, 1, 26)


def test_sums_over_rows_have_no_rows():
    found = filled(columns={"layers": [1], "heads": [0], "reduce": [], "rows": "all"})["columns"]
    assert [axis.name for axis in found.spec.axes] == ["layer", "head", "key"]
    assert found.values.shape == (1, 1, 25)
    rows = np.arange(30)
    assert np.allclose(found.values[0, 0, 5], (rows + 1 / 64 + 5 / 64**3).sum())


@pytest.mark.parametrize(
    ("reduce", "axes"),
    [
        ([], ["layer", "head"]),
        (["head"], ["layer"]),
        (["layer"], ["head"]),
        (["layer", "head"], []),
    ],
)
def test_axes_that_are_averaged_over_are_gone_and_told(reduce, axes):
    options = {"layers": [2, 0], "heads": [3, 1], "reduce": reduce}
    for kind, last in (("masses", ["class"]), ("attention", ["key"]), ("saliency", ["key"])):
        (spec,) = plan(**{kind: options}).arrays
        assert [axis.name for axis in spec.axes] == ["row", *axes, *last]
        whole = {"layer": (0, 2), "head": (1, 3)}
        assert spec.mean_over == {name: whole[name] for name in reduce}


def test_divergences_and_the_largest_of_them():
    found = filled(vhd={"layers": [0, 2], "top": 3})
    vhd, total = found["vhd"].values, found["t_vhd"].values
    assert vhd.shape == (TOKENS, 2, 4)
    assert total.shape == (TOKENS,)
    assert np.allclose(total, np.sort(vhd, -1)[..., 1:].sum((1, 2)))
    half = filled(vhd={"layers": [0, 2]})["t_vhd"].values
    assert np.allclose(half, np.sort(vhd, -1)[..., 2:].sum((1, 2)))
    assert [axis.name for axis in found["vhd"].spec.axes] == ["row", "layer", "head"]
    assert plan(vhd={"rows": {"answer": [1, 3]}}).trace.compares
    assert refused(vhd={"top": 5}) == ("trace_out_of_range", "trace.vhd.top")
    assert refused(vhd={"rows": "prompt"}) == ("trace_undefined", "trace.vhd.rows")


def test_looking_at_images_rather_than_at_the_system_prompt():
    text = "B SYS USER: look? ASSISTANT:"
    offsets = [(0, 1), (2, 5), (6, 11), *[(11, 11)] * 3, (12, 17), (18, 28)]
    where = scope(prompt=Prompt(8, ((3, 6),), text, offsets))
    (reading,) = plan(where, vas=True).trace.readings
    assert (reading.rows, reading.keys) == ((6, 7), (((1, 2),), ((3, 6),)))
    assert plan(where, vas={"with_first": True}).trace.readings[0].keys[0] == ((0, 2),)
    found = filled(where=where, vas={"layers": [1]})
    shares = found["vas.shares"]
    assert shares.spec.axes[-1].coordinates == ("image", "system", "rest")
    image, system, _ = np.moveaxis(shares.values.astype(np.float64), -1, 0)
    assert np.allclose(found["vas"].values, image / system)
    assert found["vas"].values.shape == (1, 1, 4)
    (axis,) = found["vas.summary"].spec.axes
    assert axis.coordinates[:2] == ("mean of ratios", "ratio of sums")
    wanted = [(image / system).mean(), image.sum() / system.sum(), image.mean(), system.mean()]
    assert np.allclose(found["vas.summary"].values[:4], wanted)


def test_sinks_of_the_prompt():
    found = filled(sinks={"layers": [0, 2], "tau": 20})
    scores = found["sinks.scores"]
    assert scores.values.shape == (2, 25)
    assert np.array_equal(found["sinks.found"].values, scores.values >= 20)
    assert found["sinks.lifetime"].values.tolist() == [0] * 20 + [2] * 5
    assert [array.spec.dtype for array in found.values()] == ["float32", "uint8", "int32"]


def test_directions_are_unit_vectors():
    given = [[3.0] + [0.0] * 14 + [4.0], [1e300] * 16]
    found = plan(projections={"directions": given, "layers": [3, 0]})
    assert [reading.layers for reading in found.trace.readings] == [(0,), (3,)]
    vectors = found.trace.readings[0].vectors.unpack()
    assert vectors.dtype == np.float32
    assert np.allclose(vectors[0, [0, 15]], [0.6, 0.8])
    assert np.allclose(vectors[1], 0.25)
    assert found.arrays[0].shape == (TOKENS, 2, 2)
    assert refused(projections={"directions": [[1.0] * 15]})[1] == "trace.projections.directions[0]"
    assert refused(projections={"directions": [[0.0] * 16]})[1] == "trace.projections.directions[0]"
    given = {"directions": [[1.0] * 16], "layers": [3]}
    assert plan(projections=given).trace.readings[0].site == "residual"
    for site in ("attention_output", "mlp_output"):
        assert refused(projections=given | {"site": site})[1] == "trace.projections.layers[0]"


def test_directions_of_an_artifact():
    tensors = {"vectors": np.eye(3, 16, dtype=np.float32) * 2, "layers": np.int32([1, 3, 3])}
    known = read_artifact(write_artifact("subspaces", MODEL.fingerprint, tensors))
    where = scope(artifacts={known.digest: known}.get)
    found = plan(where, projections={"artifact": known.digest})
    assert [len(reading.vectors.unpack()) for reading in found.trace.readings] == [1, 2]
    made = arrays(found)["projections"]
    assert made.values.shape == (TOKENS, 2, 2)
    assert np.isnan(made.values[:, 0, 1]).all()
    assert np.isfinite(made.values[:, 1]).all()
    one = plan(where, projections={"artifact": known.digest, "layers": [3]})
    assert one.arrays[0].axes[1].coordinates == (3,)
    code, param = refused(where, projections={"artifact": known.digest, "layers": [2]})
    assert (code, param) == ("trace_out_of_range", "trace.projections.layers")
    with pytest.raises(InterventionError) as failed:
        plan(scope(), projections={"artifact": known.digest})
    assert (failed.value.status, failed.value.param) == (404, "trace.projections.artifact")


def test_the_lens_has_tokens_and_their_logarithms():
    found = filled(logit_lens={"layers": [0, 3], "top": 2})
    tokens, logprobs = found["logit_lens.tokens"], found["logit_lens.logprobs"]
    assert tokens.values.shape == logprobs.values.shape == (TOKENS, 2, 2)
    assert (tokens.values.dtype, logprobs.values.dtype) == (np.int32, np.float32)
    assert tokens.values[0, 0].tolist() == [65, 66]
    assert tokens.spec.tokens
    assert not logprobs.spec.tokens
