"""Whether a source can be a grammar: found by compiling it, within the limits that answers have."""

from __future__ import annotations

import re
from typing import Final

from saccade_server.grammars.compiling import compiled
from saccade_server.grammars.errors import TOO_LARGE, GrammarError, GrammarFailed
from saccade_server.grammars.limits import LONGEST_SOURCE
from saccade_server.grammars.vocabulary import BYTES

_WHERE: Final = re.compile(r"^at \d+\(\d+\): (?:failed to compile JSON schema: )?")


def check(source: str) -> None:
    """Raise GrammarError for a source that is no grammar, or one beyond the limits."""
    if len(source) > LONGEST_SOURCE:
        raise GrammarError(
            f"The grammar is longer than {LONGEST_SOURCE} characters.", code=TOO_LARGE
        )
    try:
        compiled(source, BYTES)
    except GrammarFailed as failed:
        raise GrammarError(told(str(failed))) from None


def told(message: str) -> str:
    """The first line of llguidance's words, without the place in the source, as a sentence."""
    line = _WHERE.sub("", message).split("\n", 1)[0].strip().rstrip(".")
    return f"{line[:1].upper()}{line[1:]}."
