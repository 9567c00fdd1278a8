r"""DoLa: Decoding by Contrasting Layers (Chuang et al., ICLR 2024, arXiv 2309.03883).

What late layers add to the next token's distribution is, more than the rest, factual knowledge. So
the distribution p of the last layer is contrasted with q_j, read from the residual entering an
early layer j (0: the embeddings), through the same output projection:

    d = log p - strength log q_j,    tokens with p < relative_top max p excluded

Of several candidate layers the one counts whose distribution differs most from p, chosen anew for
every token and every sequence. With M = (p + q_j) / 2 the published code measures

    divergence = "dola":    (KL(M || p) + KL(M || q_j)) / 2

although it means the Jensen-Shannon divergence, (KL(p || M) + KL(q_j || M)) / 2, which is "jsd"
here. They choose different layers now and then.

Worked example: p from logits [3, 2, 0, -1], layers [1, 2, 0.5, -1] and [2.5, 2, 0, -1]: the
divergences are 0.032547 and 0.001796 ("dola", averaged over the vocabulary), so the first counts;
tokens 0 and 1 are left with d = [1.133333, -0.866667].

As in the published code (voidism/DoLa, commit 805230e) and in transformers, the early residual goes
into the output projection *without* the final norm; ``early_norm`` applies it. The code's candidate
layers are even ones: of the lower half ("low", for long answers and reasoning) or of the upper half
("high", for short facts), and 20 layers wide in models of more than 40. Where input and output
embeddings are tied, layer 0 predicts the token just read; name other layers there.

The code chooses one layer for a whole batch, and takes the cut from its first row; here every
sequence has its own. ``strength`` is 1 in the paper.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from saccade_interventions.base import Grid, Intervention, Level, Probe
from saccade_interventions.context import Context
from saccade_interventions.indices import Indices
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.plan import Plan
from saccade_interventions.rules import ContrastRule, EarlyExit
from saccade_interventions.targets import check_layers

WIDEST = 40
"""Models of more layers have buckets of :data:`BUCKET` layers instead of halves."""

BUCKET = 20


def _layers_kind(value: Any) -> str | None:
    if isinstance(value, list):
        return "list"
    return "bucket" if isinstance(value, str) else None


class DoLa(Intervention):
    """Contrast the next token's distribution with that of an early layer."""

    title: ClassVar[str] = "Decoding by Contrasting Layers"
    summary: ClassVar[str] = (
        "Draws from log p - log q, where q is read from the early layer that differs most, among "
        "the tokens that are likely enough."
    )
    paper: ClassVar[str] = (
        "Chuang et al., DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language "
        "Models, ICLR 2024, arXiv 2309.03883"
    )
    level: ClassVar[Level] = "logits"
    example: ClassVar[dict[str, Any]] = {"method": "dola", "layers": "low"}
    neutral: ClassVar[dict[str, Any] | None] = {"strength": 0}
    grid: ClassVar[Grid] = (
        {"strength": 0.25},
        {"strength": 0.5},
        {},
        {"layers": "low"},
    )
    """Parts of the contrast; then all of it, from either half of the layers."""

    method: Literal["dola"] = "dola"

    layers: Annotated[
        Annotated[Literal["low", "high"], Tag("bucket")] | Annotated[Indices, Tag("list")],
        Discriminator(
            _layers_kind,
            custom_error_type="layers",
            custom_error_message='Layers are "low", "high" or a list of numbers',
        ),
    ] = "high"
    """Candidates: even layers of the lower or upper half, or a list; layer j is what enters it."""

    strength: float = Field(1.0, ge=0, le=10)
    """Weight of the early layer. 0 changes nothing, and then relative_top is not applied either."""

    relative_top: float = Field(0.1, ge=0, le=1)
    """Tokens less likely than this fraction of the likeliest are excluded."""

    early_norm: bool = False
    """Apply the model's final norm to the early residual first."""

    divergence: Literal["dola", "jsd"] = "dola"
    """How candidates are compared with the last layer."""

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        return Probe({"method": "dola", "strength": 5, "relative_top": 0})

    def compile(self, context: Context) -> Plan:
        layers = candidates(self.layers, context.model)
        plan = context.plan()
        if self.strength:
            early = EarlyExit(layers, self.early_norm, self.divergence)
            plan.rule(ContrastRule(1.0, self.strength, self.relative_top, early=early))
        return plan.build()

    def normalised(self) -> dict[str, Any]:
        """The entry with every default filled in, and its layers in order."""
        entry = super().normalised()
        if isinstance(entry["layers"], list):
            entry["layers"] = sorted(entry["layers"])
        return entry


def candidates(layers: str | list[int], model: ModelFacts) -> tuple[int, ...]:
    """The layers asked for, ascending.

    Raises:
        InterventionError: a layer that the model does not have.
    """
    if isinstance(layers, list):
        check_layers(layers, model)
        return tuple(sorted(layers))
    wide = model.layers > WIDEST
    if layers == "low":
        chosen = range(BUCKET if wide else model.layers // 2)
    else:
        chosen = range(model.layers - BUCKET if wide else model.layers // 2, model.layers)
    return tuple(layer for layer in chosen if layer % 2 == 0) or (0,)
