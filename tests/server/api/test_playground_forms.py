"""The playground's forms, words and code: what they make is what the server takes and says."""

import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from saccade_server.demo import sample_path
from saccade_server.receipt_line import receipt_line
from saccade_server.word_diff import word_diff
from saccade_testing.api.playground import (
    EDITED,
    ENVIRONMENT,
    add,
    answered,
    ask,
    open_page,
    shown_body,
    start_two_answers,
)
from saccade_testing.api.server import REGISTRY


@pytest.fixture(scope="module")
def two() -> Iterator:
    server = start_two_answers()
    yield server
    server.stop()


def test_every_method_has_a_form_that_makes_a_valid_entry(two, tab):
    page = open_page(tab, two.url)
    for index, method in enumerate(REGISTRY.methods):
        about = REGISTRY.describe(method)
        add(page, method)
        card = page.locator(".method").nth(index)
        card.locator("summary").click()
        card.locator("text=Fill in the example").click()
        if about["needs_artifact"]:
            artifact = about["example"].get("artifact")
            if artifact:
                page.fill(f"#field-interventions-{index}-artifact", artifact)
    entries = shown_body(page)["interventions"]
    shown = page.evaluate("() => [...document.querySelectorAll('.field')].map((e) => e.innerHTML)")
    for index, method in enumerate(REGISTRY.methods):
        properties = REGISTRY.describe(method)["schema"]["properties"]
        for name, of in properties.items():
            there = any(f"field-interventions-{index}-{name}" in text for text in shown)
            assert there == ("const" not in of), (method, name)
    for method, entry in zip(REGISTRY.methods, entries, strict=True):
        example = REGISTRY.describe(method)["example"]
        (made,) = REGISTRY.parse([entry])
        (wanted,) = REGISTRY.parse([example])
        assert made.normalised() == wanted.normalised()


def test_the_code_asks_what_the_page_asked(two, tab, tmp_path):
    page = open_page(tab, two.url)
    add(page, "pai")
    odd = 'What is "there"? $HOME `id` \\n {x} é'
    page.fill("#question", odd)
    page.fill("#field-seed", "7")
    ask(page)
    answered(page, "edited")
    asked = next(request for request in two.engine.requests[-2:] if request.plan is not None)
    sample = sample_path("absent-1")
    (tmp_path / "picture.png").write_bytes(sample.read_bytes())
    for form, run in RUNS.items():
        if shutil.which(run[0]) is None:
            continue
        page.locator(f".choices button >> text='{form}'").click()
        code = page.inner_text(".code pre")
        done = subprocess.run(
            [*run, code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        assert EDITED in done.stdout, (form, done.stderr)
        again = two.engine.requests[-1]
        assert again.tokens == asked.tokens, form
        assert again.sampling == asked.sampling, form
        assert again.plan is not None


RUNS = {
    "curl": ("bash", "-c"),
    "Python": (sys.executable, "-c"),
    "Python, openai": (sys.executable, "-c"),
    "TypeScript": ("node", "--input-type=module", "-e"),
}


def test_words_and_receipts_are_those_of_the_command_line(two, tab):
    page = open_page(tab, two.url)
    rng = random.Random(3)
    pairs = [
        [
            "".join(rng.choices(["a ", "b", " cat", ", ", "dog.", "\n"], k=rng.randrange(12)))
            for _ in "12"
        ]
        for _ in range(60)
    ]
    found = page.evaluate(COMPARED, pairs)
    for (first, second), (gone, new) in zip(pairs, found, strict=True):
        told = word_diff(first, second)
        marked = {"red": "", "green": ""}
        for span in told.spans:
            marked[str(span.style)] += told.plain[span.start + 2 : span.end - 2]
        for ours, theirs in ((gone, marked["red"]), (new, marked["green"])):
            assert re.sub(r"\s", "", ours) == re.sub(r"\s", "", theirs), (first, second)
    entries = [
        applied(rng, status, layers)
        for status in ("applied", "no_effect", "cached")
        for layers in ([], [3], [1, 2, 3, 7], [0, 2, 3])
    ]
    assert page.evaluate(IN_WORDS, entries) == [receipt_line(entry) for entry in entries]


COMPARED = """async (pairs) => {
  const { compare } = await import("/playground/diff.js");
  const cut = (text, places) => places.map(([a, b]) => text.slice(a, b)).join("");
  return pairs.map(([a, b]) => [compare(a, b)].map((d) => [cut(a, d.first), cut(b, d.second)])[0]);
}"""
IN_WORDS = """async (entries) => {
  const { receiptLine } = await import("/playground/receipt.js");
  return entries.map(receiptLine);
}"""


def applied(rng, status, layers):
    counts = {name: rng.randrange(3) for name in ("prompt", "generated", "cached")}
    moved = rng.choice([None, 3])
    return {
        "status": status,
        "rows": counts,
        "heads": rng.randrange(3),
        "layers": layers,
        "edits": {"evaluated": 9, "moved": moved},
        "counters": rng.choice([{}, {"contrasted": 2, "draws": 1}]),
        "filled_in": rng.choice([{}, {"layers": [1], "alpha": 0.5}]),
    }
