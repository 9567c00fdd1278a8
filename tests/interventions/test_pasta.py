"""PASTA: the worked example, the definition written out, and what may be highlighted."""

import pytest
import torch

from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Prompt
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.methods.pasta import PASTA
from saccade_testing.plans import attend, context_of

TEXT = "Tell me in JSON: name, age. In JSON!"
WORDS = Prompt(
    length=9,
    text=TEXT,
    offsets=[(0, 4), (4, 7), (7, 10), (10, 15), (15, 16), (16, 26), (26, 27), (27, 30), (30, 36)],
)


def weakened(attention, keys, alpha):
    """The definition: multiply, then renormalise the row."""
    attention = attention.clone()
    attention[..., keys] *= alpha
    return attention / attention.sum(-1, keepdim=True)


def test_the_worked_example():
    z = torch.tensor([1.0, 2.0, 0.5, 1.5])
    plan = PASTA(spans=[[1, 2]], layers=[2]).compile(context_of(Prompt(3)))
    edited = attend(plan, z.expand(4, 4, 4))[0, 3]
    after = torch.tensor([0.002282, 0.620178, 0.001384, 0.376157]).double()
    torch.testing.assert_close(edited, after, rtol=0, atol=5e-7)


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"spans": [[2, 4]]}, [0, 1, 4, 5, 6, 7, 8]),
        ({"spans": [[2, 4], [3, 6], [8, 9]]}, [0, 1, 6, 7]),
        ({"highlight": ["JSON"]}, [0, 1, 2, 4, 5, 6, 7]),
        ({"highlight": ["SON: na"], "spans": [[0, 1]]}, [1, 2, 6, 7, 8]),
        ({"spans": [[2, 4]], "mode": "include"}, [2, 3]),
        ({"spans": [[2, 4]], "alpha": 0.5}, [0, 1, 4, 5, 6, 7, 8]),
    ],
)
def test_the_definition_written_out(options, keys):
    """Several sections count once; generated keys (9, 10) keep their weight."""
    plan = PASTA(heads={"2": [1, 3]}, **options).compile(context_of(WORDS))
    scores = torch.randn(4, 11, 11, dtype=torch.float64)
    before, edited = attend(None, scores), attend(plan, scores, exact=True)
    after = before.clone()
    after[[1, 3]] = weakened(before[[1, 3]], keys, options.get("alpha", 0.01))
    torch.testing.assert_close(edited, after, rtol=0, atol=1e-15)


def test_names_every_occurrence():
    assert WORDS.find("JSON") == ((3, 4), (8, 9))
    assert WORDS.find("In JSON") == ((7, 9),)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"highlight": ["JSON", "YAML"]}, "highlight[1]"),
        ({"spans": [[0, 2], [8, 10]]}, "spans[1]"),
        ({"spans": [[0, 9]]}, ""),
    ],
)
def test_what_is_not_there_is_refused(options, param):
    with pytest.raises(InterventionError) as caught:
        PASTA(layers=[2], **options).compile(context_of(WORDS))
    assert (caught.value.code, caught.value.param) == (Code.TARGET_NOT_FOUND, param)


def test_a_text_that_is_everywhere_is_refused():
    prompt = Prompt(2, text="a" * 10_000, offsets=[(0, 5000), (5000, 10_000)])
    with pytest.raises(InterventionError, match="more than 4096 times") as caught:
        PASTA(layers=[2], highlight=["aaaa", "a"]).compile(context_of(prompt))
    assert (caught.value.code, caught.value.param) == (Code.INVALID_PARAMS, "highlight[1]")


def test_texts_are_few_and_looked_for_once(monkeypatch: pytest.MonkeyPatch):
    asked = []
    honest = Prompt.find
    monkeypatch.setattr(Prompt, "find", lambda self, text: asked.append(text) or honest(self, text))
    PASTA(layers=[2], highlight=["JSON", "age", "JSON"]).compile(context_of(WORDS))
    assert asked == ["JSON", "age"]
    with pytest.raises(ValueError, match="at most 16"):
        PASTA(layers=[2], highlight=["JSON"] * 17)


def test_all_of_the_prompt_may_be_weakened():
    plan = PASTA(layers=[2], spans=[[0, 9]], mode="include").compile(context_of(WORDS))
    scores = torch.randn(4, 11, 11)
    before = attend(None, scores)
    edited = attend(plan, scores)
    torch.testing.assert_close(edited[:, :9], before[:, :9])
    assert (edited[:, 9:, :9].sum(-1) < before[:, 9:, :9].sum(-1)).all()


def test_a_factor_of_one_is_no_plan():
    entry = PASTA(layers=[2], spans=[[0, 2]], alpha=1)
    assert compile_plan([entry], context_of(WORDS)) is None


def test_works_without_images_and_on_text_models():
    context = context_of(WORDS, accepts_images=False)
    assert PASTA.unsupported(context.model) is None
    assert PASTA(layers=[2], spans=[[0, 2]]).compile(context).edits
