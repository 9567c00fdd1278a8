"""How much work a grammar may make: at its compilation, at each token, and in memory."""

from __future__ import annotations

from typing import Final

from llguidance import LLParserLimits

LONGEST_SOURCE: Final = 256 * 1024
"""Characters of a grammar's source."""

LIMITS: Final = LLParserLimits(
    max_items_in_row=2000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    precompute_large_lexemes=False,
    verbose_errors=False,
)
