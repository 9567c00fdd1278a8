"""V07, V08, V10 to V13, V17: an intervention that cannot be is refused where it stands."""

import json

import pytest

from saccade_testing.public import asking, pictures

HI = {"role": "user", "content": "Hi"}


@pytest.fixture(scope="module")
def question():
    return asking.user(asking.image(pictures.URL), asking.text(asking.QUESTION))


@pytest.mark.parametrize("order", ["first", "last", "second turn"])
def test_positions_follow_the_expanded_image(demo, order):
    """V07. From Aofei-Chang/MedHEval#3."""
    image, text = asking.image(pictures.URL), asking.text(asking.QUESTION)
    turns = {
        "first": [asking.user(image, text)],
        "last": [asking.user(text, image)],
        "second turn": [HI, asking.said("Hello"), asking.user(text, image)],
    }[order]
    answer = demo.chat(*turns, logprobs=True, interventions=[{"method": "pai", "alpha": 4}])
    assert answer.json()["interventions_applied"][0]["status"] == "applied"
    assert asking.seen(answer).distance(demo.see(*turns)) > 1e-5


def test_an_image_that_is_not_there_is_refused(demo, question):
    """V07."""
    answer = demo.chat(question, interventions=[{"method": "pai", "image_index": 1}])
    asking.refused(answer, "interventions[0].image_index", "intervention_target_not_found")


RANGES = {
    # vgel/repeng#48, steering-vectors/steering-vectors#63,
    # andyzoujm/representation-engineering#10
    "negative layer": ({"layers": [-1]}, "layers[0]", None),
    "layer behind the last": ({"layers": ["LAYERS"]}, "layers[0]", "LAYERS"),
    "head behind the last": ({"layers": [0], "heads": ["HEADS"]}, "heads[0]", "HEADS"),
    "second entry": ({"layers": [0, "LAYERS"]}, "layers[1]", "LAYERS"),
    "text": ({"layers": ["3"]}, "layers[0]", None),
    "no layer": ({"layers": []}, "layers", None),
}


@pytest.mark.parametrize("name", RANGES)
def test_a_layer_or_head_out_of_range_is_refused_with_the_range(demo, name):
    """V08."""
    fields, where, behind = RANGES[name]
    sizes = {"LAYERS": demo.card["layers"], "HEADS": demo.card["heads"]}
    filled = {
        key: [sizes.get(item, item) if behind else item for item in value]
        for key, value in fields.items()
    }
    answer = demo.chat(HI, interventions=[{"method": "head_scale", "gain": 2, **filled}])
    error = answer.json()["error"]
    assert error["param"].startswith(f"interventions[0].{where}")
    message = asking.refused(answer, error["param"])
    if behind:
        assert str(sizes[behind] - 1) in message


@pytest.mark.parametrize("method", ["pai", "var", "vcd", "pai_contrast"])
def test_an_image_method_needs_an_image(demo, method):
    """V10. From sgl-project/sglang#21762."""
    answer = demo.chat(HI, interventions=[{"method": method}])
    asking.refused(answer, "interventions[0]", "intervention_requires_image", says="image")


@pytest.mark.parametrize("value", ["0.5", "NaN", True, [1], {"value": 1}], ids=str)
def test_a_strength_is_a_number(demo, question, value):
    """V11: numbers from YAML and command lines."""
    answer = demo.chat(question, interventions=[{"method": "pai", "alpha": value}])
    asking.refused(answer, "interventions[0].alpha", "intervention_invalid_params", says="number")


def test_one_entry_is_still_a_list(demo, question):
    """V11."""
    answer = demo.chat(question, interventions={"method": "pai"})
    asking.refused(answer, "interventions", says="list")


def test_interventions_may_come_as_text_in_vllm_xargs(demo, question):
    """V12. From IBM/vLLM-Hook#29 and #17. Two places that disagree are refused."""
    entries = [{"method": "pai", "alpha": 2}]
    inside = {"interventions": json.dumps(entries)}
    by_text = demo.look(pictures.URL, vllm_xargs=inside)
    assert by_text.distance(demo.look(pictures.URL, interventions=entries)) < 1e-6
    assert by_text.distance(demo.look(pictures.URL)) > 1e-5
    both = demo.chat(question, vllm_xargs=inside, interventions=[{"method": "pai", "alpha": 1}])
    asking.refused(both, "vllm_xargs.interventions", "intervention_conflict")
    broken = demo.chat(question, vllm_xargs={"interventions": "[{"})
    asking.refused(broken, "vllm_xargs.interventions")


PASTA = {"method": "pasta", "layers": [1, 2], "heads": "all"}


def test_a_highlight_must_be_in_the_prompt(demo):
    """V13: of PASTA's users. A text that cuts tokens is found, and so is every occurrence."""

    def highlighted(text, said="Where is the red circle? A red circle."):
        return demo.chat(
            said, logprobs=True, interventions=[PASTA | {"alpha": 0.001, "highlight": [text]}]
        )

    missing = highlighted("zebra")
    where = "interventions[0].highlight[0]"
    asking.refused(missing, where, "intervention_target_not_found")
    asking.answered(highlighted("ed cir"))
    both = asking.seen(highlighted("red circle"))
    one = asking.seen(highlighted("red circle?"))
    assert both.distance(one) > 1e-6


MISPLACED = {
    # IBM/vLLM-Hook#17, sgl-project/sglang#20573: never ignored
    "metadata": ({"metadata": {"interventions": "[]"}}, "metadata.interventions"),
    "singular": ({"intervention": [{"method": "pai"}]}, "intervention"),
    "misspelt": ({"interventons": [{"method": "pai"}]}, "interventons"),
    "another name": ({"steering": [{"method": "pai"}]}, "steering"),
    "upper case": ({"Interventions": [{"method": "pai"}]}, "Interventions"),
    "extra_body": ({"extra_body": {"interventions": [{"method": "pai"}]}}, "extra_body"),
}


@pytest.mark.parametrize("name", MISPLACED)
def test_interventions_in_another_place_are_refused(demo, question, name):
    """V17."""
    fields, param = MISPLACED[name]
    answer = demo.chat(question, **fields)
    asking.refused(answer, param, "intervention_unknown_field", says="interventions")


def test_interventions_in_a_message_are_refused(demo):
    """V17."""
    entries = [{"method": "pai"}]
    in_message = demo.chat(asking.user("Hi", interventions=entries))
    asking.refused(in_message, "messages[0].interventions", "intervention_unknown_field")
    part = asking.image(pictures.URL) | {"interventions": entries}
    in_part = demo.chat(asking.user(part, asking.text("x")))
    where = "messages[0].content[0].interventions"
    asking.refused(in_part, where, "intervention_unknown_field")
