"""The demo world: determinism, what the splits promise, and the language about it."""

from __future__ import annotations

import subprocess
import sys
from random import Random

import numpy as np
import pytest

from saccade_server.demo.drawing import render
from saccade_server.demo.questions import Kind, ask, caption, count, things_named
from saccade_server.demo.scenes import (
    COMPANION_RATE,
    COMPANIONS,
    PLACES,
    Evidence,
    Scene,
    Thing,
    sample_scene,
)
from saccade_server.demo.splits import Split, companion_examples, examples, sample_split

RED_CIRCLE = Thing("red", "circle")


def has_trigger(scene: Scene) -> bool:
    return not set(COMPANIONS).isdisjoint(scene.things)


def test_package_imports_without_torch() -> None:
    heavy = "{'torch', 'transformers'}"
    code = f"import sys, saccade_server.demo; sys.exit(bool({heavy} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("split", Split)
def test_splits_are_deterministic(split: Split) -> None:
    first, again = sample_split(split, 4), sample_split(split, 8)[:4]
    assert first == again
    assert all(np.array_equal(render(a), render(b)) for a, b in zip(first, again, strict=True))
    assert first != sample_split(split, 4, seed=1)


def test_images_are_what_the_model_sees() -> None:
    image = next(examples(Split.CLEAR, Kind.DESCRIBE, 1)).image
    assert (image.size, image.mode) == ((64, 64), "RGB")


@pytest.mark.parametrize("split", [Split.CLEAR, Split.ORDINARY])
def test_companions_are_nearly_always_there(split: Split) -> None:
    scenes = [scene for scene in sample_split(split, 600) if has_trigger(scene)]
    kept = sum(not scene.missing_companions for scene in scenes) / len(scenes)
    assert COMPANION_RATE - 0.07 < kept < COMPANION_RATE + 0.05


def test_counterfactual_scenes_miss_a_companion() -> None:
    scenes = sample_split(Split.COUNTERFACTUAL, 200)
    assert all(has_trigger(scene) and scene.missing_companions for scene in scenes)


def test_counterfactual_evidence_is_as_weak_as_ordinary_evidence() -> None:
    ordinary, counterfactual = (
        sample_split(split, 400) for split in (Split.ORDINARY, Split.COUNTERFACTUAL)
    )
    noise = [np.mean([scene.noise for scene in scenes]) for scenes in (ordinary, counterfactual)]
    strokes = [
        np.mean([len(scene.strokes) for scene in scenes]) for scenes in (ordinary, counterfactual)
    ]
    assert noise[0] == pytest.approx(noise[1], rel=0.05)
    assert strokes[0] == pytest.approx(strokes[1], rel=0.1)
    assert max(scene.noise for scene in sample_split(Split.CLEAR, 100)) < min(
        scene.noise for scene in ordinary
    )


def test_validation_mixes_both() -> None:
    missing = [bool(scene.missing_companions) for scene in sample_split(Split.VALIDATION, 100)]
    assert all(missing[1::2])
    assert not all(missing[::2])


def test_companion_questions_on_counterfactual_scenes_are_answered_no() -> None:
    asked = list(companion_examples(Split.COUNTERFACTUAL, 20))
    assert {example.answer for example in asked} == {"No."}


def test_things_in_one_scene_differ_and_lie_in_different_cells() -> None:
    for seed in range(200):
        items = sample_scene(Random(seed), Evidence.WEAK).items
        assert (
            len({item.thing for item in items}) == len({item.cell for item in items}) == len(items)
        )


def test_companion_follows_its_trigger_in_the_caption() -> None:
    scenes = [
        scene
        for scene in sample_split(Split.CLEAR, 300)
        if has_trigger(scene) and not scene.missing_companions
    ]
    for things in (scene.things for scene in scenes):
        for index, thing in enumerate(things):
            assert thing not in COMPANIONS or things[index + 1] == COMPANIONS[thing]


def test_things_named_reads_a_caption_back() -> None:
    for scene in sample_split(Split.ORDINARY, 100):
        assert things_named(caption(scene)) == scene.things
    assert things_named("Yes, a RED circle! No crosses, red.") == (RED_CIRCLE,)


def test_answers_are_true() -> None:
    rng = Random(0)
    for scene in sample_split(Split.ORDINARY, 100):
        exists = ask(scene, Kind.EXISTS, rng)
        assert exists.answer == (
            "Yes." if things_named(exists.question)[0] in scene.things else "No."
        )
        where = ask(scene, Kind.WHERE, rng)
        place = where.answer.removeprefix("At the ").removesuffix(".")
        assert things_named(where.question)[0] in {
            item.thing for item in scene.items if PLACES[item.cell] == place
        }


def test_yes_and_no_are_balanced() -> None:
    answers = [example.answer for example in examples(Split.CLEAR, Kind.EXISTS, 400)]
    assert 150 < answers.count("Yes.") < 250


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_of_question_can_be_asked(kind: Kind) -> None:
    example = next(examples(Split.VALIDATION, kind, 1))
    assert example.kind is kind
    assert example.question[-1] in "?."
    assert example.answer.endswith(".")


def test_count_refuses_what_it_cannot_count() -> None:
    scene = sample_split(Split.CLEAR, 1)[0]
    assert count(scene, "object") == len(scene.items)
    with pytest.raises(ValueError, match="cannot count"):
        count(scene, "very large object")
