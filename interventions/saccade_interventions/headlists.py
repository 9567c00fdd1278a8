"""Heads that a request names itself or by an artifact, for methods that act on chosen heads."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator
from pydantic_core import PydanticCustomError

from saccade_interventions.artifacts import ArtifactId
from saccade_interventions.context import Context
from saccade_interventions.edits import Sites
from saccade_interventions.targets import Rows, Sited


def by_site(heads: NDArray[Any]) -> tuple[Sites, NDArray[np.int64]]:
    """(layer, head) pairs, int [n, 2], as sites; and their order there, as indices into ``heads``.

    Vectors of the heads, in that order, are what :meth:`PlanBuilder.head` takes.
    """
    order = np.lexsort((heads[:, 1], heads[:, 0]))
    layers, starts = np.unique(heads[order, 0], return_index=True)
    ends = [*starts[1:].tolist(), len(order)]
    chosen = heads[order, 1].tolist()
    of_layers = zip(layers.tolist(), starts.tolist(), ends, strict=True)
    return tuple((layer, tuple(chosen[start:end])) for layer, start, end in of_layers), order


class ChosenHeads(Sited):
    """A method that harms the model if it acts everywhere, so a request says where."""

    artifact: ArtifactId | None = None
    """An artifact of kind "heads" that lists the heads; it excludes `heads` and `layers`."""

    rows: Rows = "prompt+generated"

    NO_HEADS: ClassVar[str] = (
        'name the heads, as {"layer": [heads]} or by an artifact that lists them; '
        "or name layers to act on all their heads"
    )

    @model_validator(mode="after")
    def _says_where(self) -> ChosenHeads:
        named = self.heads is not None or self.layers is not None
        if self.artifact is None and not named:
            raise PydanticCustomError("no_heads", "{why}", {"why": self.NO_HEADS, "at": "heads"})
        if self.artifact is not None and named:
            raise PydanticCustomError(
                "heads_twice",
                "the artifact names the heads already; leave heads and layers out",
                {"at": "artifact"},
            )
        return self

    def sites(self, context: Context) -> Sites:
        """The (layer, heads) pairs asked for.

        Raises:
            InterventionError: an artifact, layer or head that is not there.
        """
        if self.artifact is None:
            return super().sites(context)
        listed = context.artifact(self.artifact, "heads")
        return by_site(listed.tensors["heads"])[0]
