r"""What may stand between the parts of JSON: an expression of white space as JSON has it.

Others take more for white space than JSON does, so ``\s`` is read as its four characters here.
"""

from __future__ import annotations

from typing import Final

from saccade_server.grammars.checking import TOO_LONG, TOO_MUCH, wrong_with
from saccade_server.grammars.errors import GrammarError
from saccade_server.grammars.source import HEADER, slashed
from saccade_server.grammars.trial import DEAD_END

_SPACES: Final = r" \t\n\r"


def white_space(pattern: str) -> str:
    """The expression that ``pattern`` is here.

    One that cannot be read stays as it is. Raises GrammarError for one that other texts match.
    """
    read = _read(pattern)
    other = f"SPACE: {slashed(f'({read})')} & ~(/[{_SPACES}]*/)"
    wrong = wrong_with(f"{HEADER}start: SPACE\n{other}\n")
    if wrong is None:
        raise GrammarError(
            "The pattern of white space matches other texts too; between the parts of JSON there "
            "are spaces, tabs and line ends only."
        )
    if wrong not in (DEAD_END, TOO_LONG, TOO_MUCH):
        return pattern
    return read


def _read(pattern: str) -> str:
    out, inside, at = "", False, 0
    while at < len(pattern):
        piece = pattern[at : at + 2] if pattern[at] == "\\" else pattern[at]
        at += len(piece)
        inside = piece == "[" or (inside and piece != "]")
        spaces = _SPACES if inside else f"[{_SPACES}]"
        out += spaces if piece == r"\s" else piece
    return out
