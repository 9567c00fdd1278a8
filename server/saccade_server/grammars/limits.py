"""How much work a grammar may make: at its check, at each token, and in memory.

The numbers are measured over a vocabulary of 150 000 tokens, with grammars made to be slow.
"""

from __future__ import annotations

from typing import Final

from llguidance import LLParserLimits

LONGEST_SOURCE: Final = 512 * 1024
"""Characters of a grammar's source."""

LIMITS: Final = LLParserLimits(
    # Parallel readings of a text: an ambiguous grammar costs their square at each token. An object
    # has four for each property that may come next.
    max_items_in_row=1000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=100_000,  # of one mask: about 30 ms
    step_max_items=200_000,
    # About 120 MB at most. A string whose length is bounded has 9 for each of its characters, so
    # that one of 16 000 characters can be written.
    max_lexer_states=150_000,
    max_grammar_size=200_000,
    precompute_large_lexemes=False,
    verbose_errors=False,  # the words of an error go to whoever sent the request
)

CHECK_CPU_SECONDS: Final = 1.0
"""Of one check, in the process that checks."""

TOGETHER_CPU_SECONDS: Final = 4.0
"""Of all checks that one request needs: a list of tools or tags has one for each of them."""

CHECK_SECONDS: Final = 10.0
"""Of one check on the clock: a machine that is busy with other things does not refuse grammars."""

CHECK_BYTES: Final = 1 << 29
"""Address space of one check, beside what the libraries of its process have taken."""

FIRST_MASK_SECONDS: Final = 1.0
MASK_SECONDS: Final = 0.01
"""CPU time that the masks of one answer may take: once, and for each of its tokens."""
