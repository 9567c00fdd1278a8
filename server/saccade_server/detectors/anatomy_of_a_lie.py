r"""Anatomy of a Lie: three stages of an answer, and how surprising they are together
(Xiong et al., arXiv 2603.15557).

With P_t the distribution that token t was drawn from, before temperature and penalties:

    p_t    = sum of P_t(v) over the tokens v of hedging words
    H_Evi  = mean over evidence tokens of -(p_t log2 p_t + (1 - p_t) log2 (1 - p_t))       bits
    S_Conf = ln (P(y | image, question, evidence) + 1e-9)
           - ln (P(y | question, evidence) + 1e-9)                                         nats
    H_Ans  = entropy of the distribution that y was drawn from                             bits

y is the answer's token; the second term of S_Conf reads the same text with the images taken out.
The score is the surprisal -ln p(v) of v = (H_Evi, S_Conf, H_Ans), standardised, under a mixture of
Gaussians fitted on right answers.

The published code computes none of this: it looks tokens up among rows, so that H_Evi and S_Conf
are always 0, and asks about "Yes" whatever was answered. Here they are what the formulas say. With
a ``marker``, evidence is all before it and y the first token behind it. Without one every token is
evidence, and S_Conf and H_Ans are means over all of them, each the y of its own. Hedging words
count where the tokenizer has them as one token; the paper's code takes every piece of every phrase,
"to" and "I" among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StringConstraints

from saccade_interventions.artifacts import ArtifactId
from saccade_interventions.model_facts import ModelFacts
from saccade_server.detectors.base import Detector, TokenOf
from saccade_server.detectors.mixture import Mixture
from saccade_server.detectors.traced import Floats, Scores, Traced, nothing

HEDGES = (
    "probably",
    "likely",
    "possibly",
    "might",
    "may",
    "seems",
    "appears",
    "perhaps",
    "suggests",
    "could",
    "believe",
    "guess",
    "assume",
    "unlikely",
    "maybe",
    "difficult",
    "uncertain",
)
"""The paper's hedging words, and what its phrases come down to."""

FLOOR = 1e-9
FEATURES = ("evidence", "conflict", "decision")

Word = Annotated[str, StringConstraints(min_length=1, max_length=32)]


class AnatomyOfALie(Detector):
    """How surprising evidence, conflict and decision of an answer are, next to right answers."""

    title: ClassVar[str] = "Anatomy of a Lie"
    summary: ClassVar[str] = (
        "Doubt in the evidence, what the image adds to the answer, doubt in the answer; and how "
        "surprising the three are."
    )
    source: ClassVar[str] = (
        "Xiong et al., Anatomy of a Lie: A Multi-Stage Diagnostic Framework for Tracing "
        "Hallucinations in Vision-Language Models, arXiv 2603.15557"
    )
    unit: ClassVar[str] = "nats"
    suspect: ClassVar[Literal["low", "high"]] = "high"
    needs_image: ClassVar[bool] = True
    compares: ClassVar[bool] = True

    name: Literal["anatomy_of_a_lie"] = "anatomy_of_a_lie"

    artifact: ArtifactId | None = None
    """The density of right answers, as `saccade inspect --calibrate` makes it. None: the three
    values are given, and no score."""

    marker: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    """The text behind which the final answer stands, such as "Therefore, the final answer is"."""

    words: list[Word] = Field(default_factory=lambda: list(HEDGES), max_length=256)
    """Hedging words; each counts with a space before it and a capital, too."""

    def trace(self, model: ModelFacts, token_of: TokenOf) -> dict[str, Any]:
        forms = (f for word in self.words for f in (word, word.capitalize()))
        spaced = (text for form in forms for text in (form, f" {form}"))
        found = {token_of(text) for text in spaced} - {None}
        return {"entropy": True, "token_shares": {"tokens": [sorted(found)]}}

    def scores(self, traced: Traced) -> Scores:
        if not traced.images:
            return nothing("the prompt has no image")
        if not traced.tokens:
            return nothing("the answer has no token")
        evidence, answer = self._stages(traced.texts)
        if not len(answer):
            return nothing(f"the answer does not say {self.marker!r} and then something")
        hedged = binary_entropy(traced.drawing("token_shares")[:, 0])
        conflicts = conflict(traced.drawing("logprobs"), traced.drawing("logprobs.without_images"))
        decisions = traced.drawing("entropy") / math.log(2)
        values = {
            "evidence": float(hedged[evidence].mean()) if len(evidence) else 0.0,
            "conflict": float(conflicts[answer].mean()),
            "decision": float(decisions[answer].mean()),
        }
        more = {"conflicts": conflicts, "decisions": decisions}
        if traced.density is None:
            reason = "no density of right answers is named"
            return Scores(None, values={**values, **more}, reason=reason)
        found = surprisal(np.array([[values[name] for name in FEATURES]]), traced.density)
        return Scores(float(found[0]), values={**values, **more})

    def _stages(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The tokens of evidence, and those of the answer."""
        tokens = np.arange(len(texts))
        if self.marker is None:
            return tokens, tokens
        ends = np.cumsum([len(text) for text in texts])
        start = "".join(texts).find(self.marker)
        if start < 0:
            return tokens, tokens[:0]
        behind = [at for at in tokens[ends > start + len(self.marker)] if texts[at].strip()]
        return tokens[ends <= start], np.array(behind[:1], np.int64)


def binary_entropy(p: Floats) -> Floats:
    """Bits of doubt whether or not, of probabilities p; 0 where p is within 1e-9 of 0 or 1."""
    sure = (p < FLOOR) | (1 - p < FLOOR)
    kept = np.where(sure, 0.5, p)
    bits = -(kept * np.log2(kept) + (1 - kept) * np.log2(1 - kept))
    return np.where(sure, 0.0, bits)


def conflict(with_images: Floats, without: Floats) -> Floats:
    """S_Conf of log-probabilities in nats."""
    found: Floats = np.log(np.exp(with_images) + FLOOR) - np.log(np.exp(without) + FLOOR)
    return found


def surprisal(values: Floats, density: Mapping[str, NDArray[Any]]) -> Floats:
    """-ln p of feature vectors [n, 3] under an artifact's tensors, [n] nats."""
    tensors = {name: np.asarray(tensor, np.float64) for name, tensor in density.items()}
    mixture = Mixture(tensors["weights"], tensors["means"], tensors["covariances"])
    return mixture.surprisal((values - tensors["center"]) / tensors["scale"])
