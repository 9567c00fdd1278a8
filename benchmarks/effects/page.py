"""docs/evaluation.md, written from the results."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from effects.artifacts import SCENES
from effects.settings import NEEDS
from effects.summary import CORRECTED, TUNED, comparisons, counts, methods_table
from saccade_server.evaluation.tuning import MOST_EXACT_LOST

OPENING = """# What methods do to answers, and what they cost

Written by `python benchmarks/methods.py`; do not edit. Figures are those of
`{scenes_file}` and `{speed_file}`.

Every method of the server answers the same held-out questions, through the server's own API, and is
compared with the model as it is.

**The model is the embedded demo model**, a LLaVA of three million parameters (6 layers of 6 heads)
that describes coloured shapes on 64 x 64 pixels. It was trained, by this repository, to have the
failure that most of these methods were made for: in its world some things nearly always come with a
companion, and where the picture is hard to see it names the companion though it is missing. Its
attention sinks were encouraged in training, too. **What helps or hurts this model says little about
a large model on photographs, and nothing here repeats or refutes a paper.** It shows that a method
reaches the answers, in which direction, and at what price.

## In short

{table}

{counts}

Numbers are changes from none in percentage points. {rule}
{corrected} marks the changes that also hold after a Bonferroni correction for all {comparisons}
comparisons on this page; a verdict without one rests on little.

What to keep in mind:

- Defaults are the papers' where they give any, found on models of a thousand times this size.
  A strength that is mild there can be none at all here, or far too much.
- It is no fair race. {calibrated} use artifacts that were calibrated on {labelled}
  labelled questions about this very failure; the other methods were given nothing. What a method
  cannot do without was chosen by hand: {given}.
- Tuning had {validation} scenes, half of them counterfactual, so one scene is {step:.1f} points,
  and at most {lost} of the ordinary ones could be lost. Between strengths a scene or two apart the
  choice is chance, and a tuned strength may do worse than the defaults on the scenes reported here.
- What tuning may choose from holds values that no paper advises: `adaptvis` with w1 > 1 > w2 is
  the reverse of its paper's idea, and where the model is nearly always sure it is the same as
  `scalingvis` with w = w2.
- Receipts of settings that changed no answer: {unchanged}.
{since}
## How it was measured

- {scale}
- Splits: `clear` and `ordinary` follow the prior the model was trained with, drawn clearly and
  weakly; in `counterfactual` every scene holds a trigger without its companion, drawn weakly.
- CHAIR_s: share of captions that name something absent. CHAIR_i: share of mentions that are of
  something absent. Recall of things: share of what is there that is named. Exact: the caption is
  the reference, word for word.
- Yes/no: on each scene whether some thing is there, and, on as many scenes with a trigger, whether
  its companion is. Accuracy, precision, recall, F1 and share of yes are over both together.
- Brackets hold 95 % intervals: Wilson's for shares, with the answers about one scene counted as
  dependent, and a bootstrap over scenes for quotients. Changes from none are paired: both settings
  are resampled on the same scenes. Bold changes are beyond chance: the interval excludes zero and
  the sign test agrees.
- Strengths were tuned on {validation} validation scenes, which appear nowhere else. Chosen was
  the one with the {criterion}. Weaker is what is nearer to the value that changes nothing.
  Where tuning chose what was given, there is no setting called "tuned".
- Artifacts were calibrated on other validation scenes: {artifacts}.

"""

SINCE = """\
- **`sgrs` has another default since** (2026-11-27). This page's figures are those of `normalisation
  "mean", history "accepted", warmup 1, fallback "most_salient"`, which gives the same ones today.
  The new default, asked the same questions (`benchmarks/results/scenes-sgrs-cpu-2core.json`), hurts
  less: CHAIR_s +16.7, +18.3 and +3.3 on the three splits, exact -30.8, -26.7 and -5.8, accuracy
  unchanged; with `alpha 0.3` CHAIR_s +9.2, +5.8 and +1.7. In the counterfactual split it names the
  companion less often (-6.7) and other absent things more. It does not lock up: in 40 clear
  captions 11 of 571 tokens were fallbacks. But this model is sure of what it says (98 % of tokens
  above 0.99), so another candidate is a wrong word, and S does not tell where: from 0.00 at the
  first words it rises to 0.24 from the eighth on.
"""
"""What changed after the run of 2026-11-20; gone with the next one."""

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
    tuned_on = scenes["scale"]["validation"]
    opening = OPENING.format(
        scenes_file=f"benchmarks/results/scenes-{scenes['hardware']['kind']}.json",
        speed_file=f"benchmarks/results/methods-{speed['hardware']['kind']}.json",
        table=methods_table(scenes),
        counts=counts(scenes),
        rule=scenes["verdict_rule"],
        corrected=CORRECTED,
        comparisons=comparisons(scenes),
        calibrated=_calibrated(scenes),
        labelled=SCENES,
        given=_given(),
        unchanged=_unchanged(scenes),
        since=SINCE,
        scale=_scale(scenes),
        validation=tuned_on,
        step=100 / (tuned_on // 2),
        lost=math.floor(MOST_EXACT_LOST * (tuned_on // 2)),
        criterion=scenes["tuning"]["criterion"],
        artifacts="; ".join(f"{name}: {what}" for name, what in scenes["artifacts"].items()),
    )
    cost = COST.format(
        cores=speed["hardware"]["cores"], rounds=speed["rounds"], tokens=speed["tokens_per_request"]
    )
    return opening + "## Changes from none, in points\n\n" + tables + "\n" + cost + _costs(speed)


def _calibrated(scenes: Mapping[str, Any]) -> str:
    """Methods whose entries name an artifact."""
    names = [
        f"`{setting['name']}`"
        for setting in scenes["settings"]
        if any("artifact" in entry for entry in setting["interventions"])
        and not setting["name"].endswith(TUNED)
    ]
    return ", ".join(names)


def _given() -> str:
    """What the benchmark adds to a method's name besides artifacts."""
    parts = []
    for name, fields in NEEDS.items():
        shown = [f"{field} {json.dumps(value)}" for field, value in fields.items()]
        kept = [text for text in shown if '"<' not in text]
        if kept:
            parts.append(f"`{name}` got `{', '.join(kept)}`")
    return "; ".join(parts)


def _unchanged(scenes: Mapping[str, Any]) -> str:
    """What receipts say of settings that changed nothing."""
    parts = [
        f"`{setting['name']}` "
        + ", ".join(f"{status} {count} times" for status, count in setting["receipts"].items())
        for setting in scenes["settings"]
        if setting["verdict"] == "changes no answer" and setting["name"] != "none"
    ]
    return "; ".join(parts) or "there is no such setting"


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
