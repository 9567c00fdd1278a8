"""All readers, one for each kind of reading."""

from __future__ import annotations

from typing import Any

from saccade_server.engine.traces.attention import AttentionReader
from saccade_server.engine.traces.base import Reader
from saccade_server.engine.traces.divergence import DivergenceReader
from saccade_server.engine.traces.entropy import EntropyReader
from saccade_server.engine.traces.lens import LensReader
from saccade_server.engine.traces.projections import ProjectionReader
from saccade_server.engine.traces.saliency import SaliencyReader
from saccade_server.engine.traces.scores import ScoreReader
from saccade_server.engine.traces.sinks import SinkReader
from saccade_server.engine.traces.token_shares import TokenShareReader

READERS: tuple[type[Reader[Any]], ...] = (
    AttentionReader,
    SinkReader,
    DivergenceReader,
    EntropyReader,
    LensReader,
    ProjectionReader,
    ScoreReader,
    SaliencyReader,
    TokenShareReader,
)
