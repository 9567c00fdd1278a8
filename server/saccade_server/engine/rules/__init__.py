"""What the engine does for plans' rules: one handler a kind, see base.py."""

from __future__ import annotations

from typing import Any

from saccade_server.engine.rules.base import RuleHandler
from saccade_server.engine.rules.confidence import ConfidenceHandler
from saccade_server.engine.rules.contrast import ContrastHandler
from saccade_server.engine.rules.gains import GainHandler
from saccade_server.engine.rules.growing_contrast import GrowingContrastHandler
from saccade_server.engine.rules.head_sinks import HeadSinkHandler
from saccade_server.engine.rules.recent import RecentHandler
from saccade_server.engine.rules.saliency import SaliencyHandler
from saccade_server.engine.rules.sinks import SinkHandler

HANDLERS: tuple[type[RuleHandler[Any]], ...] = (
    RecentHandler,
    SinkHandler,
    HeadSinkHandler,
    GainHandler,
    ContrastHandler,
    GrowingContrastHandler,
    SaliencyHandler,
    ConfidenceHandler,
)
"""In the order in which they act: classes of keys, then heads, then tokens."""
