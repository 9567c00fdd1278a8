"""Measures the demo model on the held-out splits: python -m saccade_server.demo.evaluate"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from . import RESULTS_PATH, model_path
from .inference import Answerer
from .questions import Kind, things_named
from .rates import Rate
from .splits import Example, Split, companion_examples, examples

REPORTED: Final = (Split.CLEAR, Split.ORDINARY, Split.COUNTERFACTUAL)

Judge = Callable[[Example, str], bool]


def is_exact(example: Example, answer: str) -> bool:
    """The answer is the reference, word for word."""
    return answer == example.answer


def names_absent(example: Example, answer: str) -> bool:
    """The caption names at least one thing which is not in the image."""
    return not set(things_named(answer)) <= set(example.scene.things)


def names_missing_companion(example: Example, answer: str) -> bool:
    """The caption names a companion which only the prior promised."""
    return not set(things_named(answer)).isdisjoint(example.scene.missing_companions)


def omits_present(example: Example, answer: str) -> bool:
    """The caption leaves out at least one thing which is in the image."""
    return not set(example.scene.things) <= set(things_named(answer))


CAPTION_JUDGES: Final[dict[str, Judge]] = {
    "caption exactly right": is_exact,
    "caption names an absent thing": names_absent,
    "caption names the missing companion": names_missing_companion,
    "caption omits a thing": omits_present,
}


def evaluate_split(answerer: Answerer, split: Split, count: int) -> dict[str, Rate]:
    """Every rate on the first `count` scenes of a split."""
    rates = _judge(answerer, examples(split, Kind.DESCRIBE, count), CAPTION_JUDGES)
    for kind in (Kind.EXISTS, Kind.COUNT, Kind.WHERE, Kind.WHAT):
        rates |= _judge(answerer, examples(split, kind, count), {f"{kind.value} right": is_exact})
    return rates | _judge(
        answerer, companion_examples(split, count), {"companion question right": is_exact}
    )


def _judge(
    answerer: Answerer, asked: Iterable[Example], judges: dict[str, Judge]
) -> dict[str, Rate]:
    listed = tuple(asked)
    answers = tuple(answerer.answers([(example.image, example.question) for example in listed]))
    return {name: _rate(judge, listed, answers) for name, judge in judges.items()}


def _rate(judge: Judge, asked: Sequence[Example], answers: Sequence[str]) -> Rate:
    verdicts = [judge(example, answer) for example, answer in zip(asked, answers, strict=True)]
    return Rate(sum(verdicts), len(verdicts))


def table(results: dict[Split, dict[str, Rate]]) -> str:
    """The results as a Markdown table, one column per split."""
    splits = tuple(results)
    lines = [
        "| | " + " | ".join(split.value for split in splits) + " |",
        "|---" * (len(splits) + 1) + "|",
    ]
    for name in results[splits[0]]:
        lines.append(
            f"| {name} | "
            + " | ".join(str(results[split][name]).strip() for split in splits)
            + " |"
        )
    return "\n".join(lines)


def as_json(results: dict[Split, dict[str, Rate]]) -> str:
    """The results as a JSON document."""
    document = {
        split.value: {
            name: asdict(rate)
            | {
                "share": round(rate.share, 4),
                "interval_95": [round(end, 4) for end in rate.interval],
            }
            for name, rate in rates.items()
        }
        for split, rates in results.items()
    }
    return json.dumps(document, indent=2) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", type=Path, default=model_path(), help="folder of the model to measure"
    )
    parser.add_argument("--scenes", type=int, default=500, help="scenes per split")
    parser.add_argument(
        "--out", type=Path, default=RESULTS_PATH, help="where to write the JSON results"
    )
    arguments = parser.parse_args()
    answerer = Answerer(arguments.model)
    results = {split: evaluate_split(answerer, split, arguments.scenes) for split in REPORTED}
    arguments.out.write_text(as_json(results), encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
