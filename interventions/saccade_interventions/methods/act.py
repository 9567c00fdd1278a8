r"""ACT: Attention Calibration Technique (Yu et al., ICML 2024, arXiv 2406.15765).

Attention sinks also form inside a sequence, and those that are not the initial token draw attention
that heads could use better. In chosen heads ACT keeps the share beta of their attention and gives
the rest to all other keys. With A the attention of one head, N rows and keys, counted from 0:

    a_k = 1 / (N - k) sum_{i >= k} A[i, k]          mean over the rows that can see key k
    S   = {k > 0 : a_k > theta}                     theta, or alpha / N with ``mode="relative"``
    A'[i, k] = beta A[i, k]                                      for k in S
    A'[i, k] = A[i, k] (1 + (1 - beta) m_S / (1 - m_S))          for all others, m_S = sum over S

Rows still sum to 1. The sinks S belong to one head of one layer. They are found in the attention
that other edits of scores left, and before any mass moves.

S of a prompt's rows depends on all rows of the prompt, so the prompt is computed in one step and
shares no cached prefix. For generated rows the paper, whose tasks generate nothing, leaves S open;
``decode`` says what it is: by default the same means over all rows so far, for keys that at least
``least_rows`` rows have seen.

Which heads to calibrate is found offline on labelled data (those whose calibration alone raises
accuracy); it is a property of the model, and no list suits another. A request therefore names an
artifact of kind "heads", or the heads themselves.

Where this differs from the published code (GATECH-EIC/ACT, commit a267af7):

- The code spares the first key found, taking it for the initial token. Where the initial token is
  below the threshold, that is the first real sink. ``spare="first_found"`` does the same.
- Its threshold is absolute (0.1, for long answers 0.15), the paper's is alpha / N with alpha = 5.
- While decoding with a cache, its mean is over the current row alone, sinks receive what they were
  to give, and the weight of the first key becomes 1, so that rows sum to up to 2. None of this is
  offered; ``decode="row"`` is the current row with the formula above.
- All attention on sinks is 0 / 0 there, an unedited row here.

``receivers="not_initial"`` leaves the attention on the initial token as it is. By the formula the
initial token takes part like any other key that is no sink, and mostly the largest part.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from saccade_interventions.artifacts import ArtifactId, artifact_id, write_artifact
from saccade_interventions.base import Grid, Intervention, Level, Probe
from saccade_interventions.context import Context
from saccade_interventions.edits import Gate, Sites
from saccade_interventions.headlists import by_site
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.phases import parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.rules import HeadSinkRule
from saccade_interventions.targets import HeadsByLayer, sites_by_layer
from saccade_kernels.controls import SINK_CLASS

REST = 0
"""The class, in a head that has its own, of keys that are neither sinks nor apart."""

NEXT_TO_NOTHING = 1e-30


class ACT(Intervention):
    """Give attention on sinks inside the sequence to all other keys, in the heads listed."""

    title: ClassVar[str] = "Attention Calibration Technique"
    summary: ClassVar[str] = (
        "Keeps a share of the attention on sinks other than the initial token, and spreads the "
        "rest over all other keys, in heads that were found to gain from it."
    )
    paper: ClassVar[str] = (
        "Yu et al., Unveiling and Harnessing Hidden Attention Sinks: Enhancing Large Language "
        "Models without Training through Attention Calibration, ICML 2024, arXiv 2406.15765"
    )
    level: ClassVar[Level] = "attention_mass"
    needs_artifact: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"method": "act", "heads": {"2": [0, 3]}, "beta": 0.4}
    neutral: ClassVar[dict[str, Any] | None] = {"beta": 1.0}
    grid: ClassVar[Grid] = (
        {"beta": 0.7},
        {},
        {"theta": 0.05},
        {"beta": 0.1},
    )
    """Less of its attention left to a sink; then more keys found to be sinks."""

    method: Literal["act"] = "act"

    artifact: ArtifactId | None = None
    """An artifact of kind "heads" that lists the heads to calibrate; it excludes `heads`."""

    heads: HeadsByLayer | None = None
    """The heads to calibrate themselves, an object from layer to list of query heads."""

    beta: float = Field(0.4, ge=0, le=1)
    """The share of its attention that a sink keeps. 1 changes nothing."""

    mode: Literal["absolute", "relative"] = "absolute"
    """Whether keys are sinks from `theta` on, or from `alpha` / N for N keys."""

    theta: float = Field(0.1, gt=0, le=1)
    """Mean attention above which a key is a sink, with the mode "absolute"."""

    alpha: float = Field(5.0, gt=0, le=1e6)
    """The same times the number of keys, with the mode "relative"."""

    decode: Literal["running", "row", "frozen", "off"] = "running"
    """The sinks of generated rows: by the mean over all rows so far; by the row alone; those of the
    prompt; or none, so that only the prompt is calibrated."""

    least_rows: int = Field(4, ge=1, le=1_000_000)
    """With "running", keys that fewer rows have seen are no sinks yet."""

    spare: Literal["initial", "first_found"] = "initial"
    """The key that is never a sink: the initial token, or, as published, the first one found."""

    receivers: Literal["all", "not_initial"] = "all"
    """Whether the initial token takes its part of what sinks give."""

    @model_validator(mode="after")
    def _says_where(self) -> ACT:
        if self.artifact is None and self.heads is None:
            raise PydanticCustomError(
                "no_heads",
                'name an artifact that lists the heads to calibrate, or the heads as {"layer": '
                "[heads]}; which ones gain differs from model to model, so there is no default",
                {"at": "artifact"},
            )
        if self.artifact is not None and self.heads is not None:
            raise PydanticCustomError(
                "heads_twice",
                "the artifact names the heads already; leave heads out",
                {"at": "heads"},
            )
        return self

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        heads = np.argwhere(np.ones((model.layers, model.heads), np.bool_)).astype(np.int32)
        data = write_artifact("heads", model.fingerprint, {"heads": heads})
        entry = {"method": "act", "artifact": artifact_id(data), "beta": 0.0, "theta": 0.01}
        return Probe(entry, data)

    def compile(self, context: Context) -> Plan:
        plan, sites = context.plan(), self.sites(context)
        if self.beta == 1:
            return plan.build()
        phases = parse_rows("prompt" if self.decode == "off" else "prompt+generated")
        given = 1 - self.beta
        moves = [(SINK_CLASS, SINK_CLASS, -given), (REST, SINK_CLASS, given)]
        apart = self.receivers == "not_initial"
        # Without a receiver a row stays as it is; the initial token must not be it after all.
        gates = [Gate((1.0, 0.0, 0.0), NEXT_TO_NOTHING)] if apart else []
        plan.per_head_mass(sites, moves, phases, gates)
        plan.rule(
            HeadSinkRule(
                sites=sites,
                threshold=self.theta if self.mode == "absolute" else self.alpha,
                relative=self.mode == "relative",
                spare=self.spare,
                decode=self.decode,
                least_rows=self.least_rows,
                exempt_initial=apart,
            )
        )
        return plan.build()

    def sites(self, context: Context) -> Sites:
        """The heads to calibrate, by layer.

        Raises:
            InterventionError: an artifact, layer or head that is not there.
        """
        if self.heads is not None:
            return sites_by_layer(self.heads, context.model)
        assert self.artifact is not None
        listed = context.artifact(self.artifact, "heads")
        return by_site(listed.tensors["heads"])[0]
