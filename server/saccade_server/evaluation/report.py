"""An outcome as a JSON document and as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from saccade_server.evaluation.measure import Figure, Measured
from saccade_server.evaluation.scenes import Outcome
from saccade_server.evaluation.settings import NONE, Interventions
from saccade_server.evaluation.tuning import CRITERION, qualifies
from saccade_server.evaluation.verdict import JUDGED, RULE, verdict

SHOWN = (
    *("CHAIR_s", "CHAIR_i", "recall of things", "exact", "words"),
    *("accuracy", "precision", "recall", "F1", "yes ratio"),
)
AS_GIVEN = "as given"

COUNTED = ("words",)
"""Metrics that are not shares."""


def as_document(outcome: Outcome) -> dict[str, Any]:
    """All figures, as plain JSON values."""
    return {
        "scale": asdict(outcome.scale),
        "verdict_rule": RULE,
        "settings": [_setting(measured) for measured in outcome.measured],
        "tuning": _tuning(outcome),
        "refused": outcome.refused,
    }


def tables(outcome: Outcome) -> str:
    """Markdown: changes from none with verdicts, then all values split by split."""
    parts = [_changes(outcome.measured)]
    for split in outcome.measured[0].figures:
        parts.append(f"### {split.value}\n\n{_values(outcome.measured, split)}")
    if outcome.tuned:
        parts.append(f"### Tuned strengths\n\n{_strengths(outcome)}")
    if outcome.refused:
        lines = [f"- `{name}`: {reason}" for name, reason in outcome.refused.items()]
        parts.append("### Not run\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _setting(measured: Measured) -> dict[str, Any]:
    found = verdict(measured)
    return {
        "name": measured.setting.name,
        "role": measured.role,
        "interventions": list(measured.setting.interventions),
        "verdict": found.word,
        "better": [" ".join(place) for place in found.better],
        "worse": [" ".join(place) for place in found.worse],
        "changed_answers": round(measured.changed, 4),
        "receipts": dict(measured.status),
        "splits": {
            split.value: {name: _figure(figure) for name, figure in figures.items()}
            for split, figures in measured.figures.items()
        },
    }


def _figure(figure: Figure) -> dict[str, Any]:
    return {
        **figure.estimate.as_json(),
        "change": None if figure.change is None else figure.change.as_json(),
        "by_seed": [None if value is None else round(value, 4) for value in figure.by_seed],
    }


def _tuning(outcome: Outcome) -> dict[str, Any] | None:
    none = outcome.none
    if none is None:
        return None
    return {
        "criterion": CRITERION,
        "scenes": outcome.scale.validation,
        "none": asdict(none),
        "settings": {
            name: {
                "chosen": list(tuned.setting.interventions),
                "tried": [
                    {
                        "interventions": list(interventions),
                        **asdict(trial),
                        "qualifies": qualifies(trial, none),
                    }
                    for interventions, trial in tuned.tried
                ],
            }
            for name, tuned in outcome.tuned.items()
        },
    }


def _changes(measured: Sequence[Measured]) -> str:
    """Changes in points; bold ones are beyond chance."""
    splits = list(measured[0].figures)
    names = [f"{name}, {split.value}" for name in JUDGED for split in splits]
    rows = []
    for one in measured:
        if one.setting.name == NONE:
            cells = [_percent(one.figures[s][n].estimate.value) for n in JUDGED for s in splits]
            rows.append([NONE, "", *cells, ""])
            continue
        cells = [_change(one.figures[split].get(name)) for name in JUDGED for split in splits]
        rows.append([_name(one), _percent(one.changed), *cells, verdict(one).word])
    return _markdown(["setting", "answers changed", *names, "verdict"], rows)


def _values(measured: Sequence[Measured], split: Any) -> str:
    rows = []
    for one in measured:
        figures = one.figures[split]
        rows.append([_name(one), *(_value(name, figures.get(name)) for name in SHOWN)])
    return _markdown(["setting", *SHOWN], rows)


def _strengths(outcome: Outcome) -> str:
    rows = []
    for name, tuned in outcome.tuned.items():
        candidates = [interventions for interventions, _ in tuned.tried]
        tried = "; ".join(
            f"{_quoted(interventions, candidates)}: {trial.chair:.1%}, {trial.exact:.1%}"
            for interventions, trial in tuned.tried
        )
        chosen = _quoted(tuned.setting.interventions, candidates)
        rows.append([name, chosen, tried])
    if outcome.none is not None:
        rows.insert(0, [NONE, "", f"{outcome.none.chair:.1%}, {outcome.none.exact:.1%}"])
    return _markdown(["setting", "chosen", "tried: CHAIR_s where the prior fails, exact"], rows)


def what_differs(chosen: Interventions, candidates: Sequence[Interventions]) -> str:
    """The fields of some interventions that are not the same in all candidates."""
    parts = []
    for at, entry in enumerate(chosen):
        others = [other[at] for other in candidates if len(other) > at]
        own = [name for name in entry if any(other.get(name) != entry[name] for other in others)]
        parts += [f"{name} {json.dumps(entry[name])}" for name in own]
    return ", ".join(parts) or AS_GIVEN


def _quoted(chosen: Interventions, candidates: Sequence[Interventions]) -> str:
    fields = what_differs(chosen, candidates)
    return fields if fields == AS_GIVEN else f"`{fields}`"


def _name(measured: Measured) -> str:
    return measured.setting.name


def _change(figure: Figure | None) -> str:
    if figure is None or figure.change is None:
        return ""
    text = f"{100 * round(figure.change.value, 4):+.1f}"  # as the document has it
    return f"**{text}**" if figure.change.beyond_chance else text


def _value(name: str, figure: Figure | None) -> str:
    if figure is None:
        return ""
    found = figure.estimate
    if name in COUNTED:
        return f"{found.value:.2f}"
    return f"{100 * found.value:.1f} [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def dump(document: dict[str, Any]) -> str:
    """JSON text of a document."""
    return json.dumps(document, indent=1) + "\n"
