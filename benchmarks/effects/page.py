"""docs/evaluation.md, written from the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

OPENING = """# What methods do to answers, and what they cost

Written by `python benchmarks/methods.py`; do not edit. Figures are those of
`{scenes_file}` and `{speed_file}`.

The demo model hallucinates by co-occurrence: shown a trigger whose usual companion is missing, it
names the companion anyway. Here every method of the server meets that failure, through the server's
own API, on held-out scenes. **What helps or hurts a model of three million parameters on coloured
shapes says little about a large model on photographs.** It shows that a method does something
measurable, in which direction, and at what price; it is no ranking of papers.

## In short

{verdicts}

{rule}

## How it was measured

- {scale}
- Splits: `clear` and `ordinary` follow the prior the model was trained with, drawn clearly and
  weakly; in `counterfactual` every scene holds a trigger without its companion, drawn weakly.
- CHAIR_s: share of captions that name something absent. CHAIR_i: share of mentions that are of
  something absent. Recall of things: share of what is there that is named.
- Yes/no: on each scene whether some thing is there, and, on as many scenes with a trigger, whether
  its companion is. Accuracy, precision, recall, F1 and share of yes are over both together.
- Brackets hold 95 % intervals: Wilson's for shares of answers, a bootstrap over scenes for
  quotients. Changes from none are paired: both settings are resampled on the same scenes. Bold
  changes exclude zero. Wilson's intervals take the two yes/no questions of a scene for independent.
- Tuned strengths were chosen on {validation} validation scenes, which appear nowhere else:
  {criterion}.
- Artifacts were calibrated on other validation scenes: {artifacts}.

"""

COST = """## What it costs

One engine in one process, {cores} cores, float32; each setting is measured beside `none`, round by
round, and ratios are medians of {rounds} rounds. A request has an image of its own and generates
{tokens} tokens, so nothing comes from a cache. *Prompt*: one request with one token. *Token alone*:
time behind the first token, one request at a time. *Token at 16*: sixteen requests at once, prompts
included. Passes are counted by the engine: prompt passes of the request and of its branches,
rows decoded for each token, and what went through layers outside of these, in full passes a token
(without the backward passes that some need).

"""


def page(scenes: Mapping[str, Any], speed: Mapping[str, Any], tables: str) -> str:
    """The whole document; ``tables`` are the evaluation's own."""
    opening = OPENING.format(
        scenes_file=f"benchmarks/results/scenes-{scenes['hardware']['kind']}.json",
        speed_file=f"benchmarks/results/methods-{speed['hardware']['kind']}.json",
        verdicts=_verdicts(scenes),
        rule=scenes["verdict_rule"],
        scale=_scale(scenes),
        validation=scenes["scale"]["validation"],
        criterion=scenes["tuning"]["criterion"],
        artifacts="; ".join(f"{name}: {what}" for name, what in scenes["artifacts"].items()),
    )
    cost = COST.format(
        cores=speed["hardware"]["cores"], rounds=speed["rounds"], tokens=speed["tokens_per_request"]
    )
    return opening + "## Changes from none, in points\n\n" + tables + "\n" + cost + _costs(speed)


def _verdicts(scenes: Mapping[str, Any]) -> str:
    """One line for each verdict, naming the settings that have it."""
    groups: dict[str, list[str]] = {}
    for setting in scenes["settings"]:
        if setting["name"] != "none":
            detail = _detail(setting)
            groups.setdefault(setting["verdict"], []).append(f"`{setting['name']}`{detail}")
    order = ("helps", "mixed", "hurts", "no measurable effect", "changes no answer")
    lines = [f"- **{word}**: {', '.join(groups[word])}" for word in order if word in groups]
    return "\n".join(lines)


def _detail(setting: Mapping[str, Any]) -> str:
    parts = [f"{side}: {_places(setting[side])}" for side in ("better", "worse") if setting[side]]
    return f" ({'; '.join(parts)})" if parts else ""


def _places(places: Sequence[str]) -> str:
    """``split metric`` pairs, by metric."""
    splits: dict[str, list[str]] = {}
    for place in places:
        split, metric = place.split(" ", 1)
        splits.setdefault(metric, []).append(split)
    return ", ".join(f"{metric} ({', '.join(found)})" for metric, found in splits.items())


def _scale(scenes: Mapping[str, Any]) -> str:
    scale = scenes["scale"]
    seeds = ", ".join(str(seed) for seed in scale["seeds"])
    total = scale["scenes"] * len(scale["seeds"])
    return (
        f"{scale['scenes']} scenes a split from each of the seeds {seeds}: {total} captions and "
        f"{2 * total} yes/no questions a split and setting, greedy. Machine: "
        f"{scenes['hardware']['processor']}, {scenes['hardware']['cores']} cores; commit "
        f"{scenes['commit']}; {scenes['date'][:10]}."
    )


def _costs(speed: Mapping[str, Any]) -> str:
    header = (
        *("setting", "prompt", "token alone", "token at 16"),
        *("prompt passes", "of branches", "rows a token", "of branches", "other passes a token"),
        "counted",
    )
    rows: list[Sequence[str]] = []
    for name, found in speed["settings"].items():
        if "refused" in found:
            rows.append([name, f"refused: {found['refused'][:120]}", *[""] * (len(header) - 2)])
            continue
        passes = found["passes"]
        times = [_time(found.get(what)) for what in ("prompt", "token_alone", "token_at_16")]
        counters = ", ".join(f"{k} {v:g}" for k, v in passes["counters_per_request"].items())
        counts = [
            f"{passes[key]:g}"
            for key in (
                *("prompt_passes", "branch_prompt_passes", "decode_rows_per_token"),
                *("branch_rows_per_token", "other_full_passes_per_token"),
            )
        ]
        rows.append([name, *times, *counts, counters])
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def _time(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"{found['ms']:.2f} ms, ×{found['ratio']:.2f}"
