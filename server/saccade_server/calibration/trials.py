"""What trying strengths found, for the terminal."""

from __future__ import annotations

from rich.console import Console

from saccade_interventions.vectors import RESIDUAL, Site, place_of
from saccade_server.calibration.judging import STANDARD_ERRORS, Setting, Trial
from saccade_server.calibration.output import show_table
from saccade_server.calibration.tuning import Tuned

GAINS = {
    "answers": "log p of right answers, change",
    "messages": "log p of a token, positive less negative messages, change",
}
RUINS = "x"


def show_trials(console: Console, tuned: Tuned, site: Site = RESIDUAL) -> None:
    """A line for each place, a column for each strength; then what is wrong with some."""
    places = list(dict.fromkeys(setting.place for setting in tuned.trials))
    strengths = list(dict.fromkeys(setting.strength for setting in tuned.trials))
    console.print(f"{GAINS[tuned.kind]}, on {tuned.held_out} held-out prompts, by strength:")
    rows = [
        (
            "" if place is None else str(place),
            *(_cell(tuned.trials[Setting(place, strength)]) for strength in strengths),
        )
        for place in places
    ]
    what = "" if places == [None] else "residual" if site == RESIDUAL else "layer"
    show_table(console, (what, *(f"{strength:g}" for strength in strengths)), rows)
    reasons = dict.fromkeys(trial.ruins for trial in tuned.trials.values() if trial.ruins)
    if reasons:
        console.print(f"{RUINS}: {'; or '.join(reasons)}")


def show_choice(
    console: Console, chosen: Setting, tuned: Tuned | None, site: Site = RESIDUAL
) -> None:
    """Name what becomes the artifact's default, and why. ``tuned`` None: nothing was tried."""
    where = "" if chosen.place is None else f"{place_of(site, chosen.place)}, "
    name = f"{where}strength {chosen.strength:g}"
    if tuned is None:
        console.print(
            f"default: {name}, not tried: the prompts have neither an answer nor an assistant's "
            "message to judge by"
        )
        return
    trial = tuned.trials.get(chosen)
    if trial is None or trial.ruins is not None or trial.gain <= STANDARD_ERRORS * trial.error:
        console.print(
            f"nothing that was tried helps the {tuned.held_out} held-out prompts beyond chance "
            f"without ruining others; default: {name}, the weakest"
        )
        return
    right = ""
    if tuned.kind == "answers":
        right = f"; {trial.right} of {tuned.held_out} right, {tuned.right} without it"
    console.print(f"default: {name}: {trial.gain:+.3f} ± {trial.error:.3f} nats{right}")


def _cell(trial: Trial) -> str:
    return f"{trial.gain:+.3f}{' ' + RUINS if trial.ruins else ''}"
