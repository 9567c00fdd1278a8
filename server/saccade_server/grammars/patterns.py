r"""Regular expressions of JSON schemas, which are JavaScript's, as llguidance reads them.

Both mean the same by most of what is written. What is read differently is rewritten here so that a
text which matches does so for everybody (the dot, which in JavaScript is none of four line ends,
and white space), or refused.
"""

from __future__ import annotations

from typing import Final

from saccade_server.grammars.errors import TOO_LARGE, UNSUPPORTED, GrammarError

LONGEST: Final = 4096
"""Characters of a pattern."""

_SPACES: Final = r"\t-\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""White space to everybody."""
_MAYBE_SPACES: Final = _SPACES + r"\x1c-\x1f\x85\ufeff"
"""What some take for white space, Python and Rust among them."""
_LINE_ENDS: Final = r"\n\r\u2028\u2029"
_SET_OPERATORS: Final = ("&&", "--", "~~")


def rewritten(pattern: str) -> str:
    """The same texts in llguidance's dialect. Raises GrammarError for what has no such reading."""
    if len(pattern) > LONGEST:
        message = f"The pattern is longer than {LONGEST} characters."
        raise GrammarError(message, code=TOO_LARGE)
    out: list[str] = []
    inside, negated, at = False, False, 0
    while at < len(pattern):
        piece = pattern[at : at + 2] if pattern[at] == "\\" else pattern[at]
        at += len(piece)
        if inside:
            if piece == "[" or pattern[at - 1 : at + 1] in _SET_OPERATORS:
                raise GrammarError(
                    "Inside brackets the pattern's [, &&, -- and ~~ must be escaped: "
                    "regular expressions differ in what they mean by them.",
                    code=UNSUPPORTED,
                )
            spaces = _MAYBE_SPACES if negated else _SPACES
            out.append(spaces if piece == r"\s" else _outside(piece))
            inside = piece != "]"
        elif piece == "[":
            inside = True
            negated = pattern[at : at + 1] == "^"
            out.append("[^" if negated else "[")
            at += negated
        else:
            out.append(f"[^{_LINE_ENDS}]" if piece == "." else _outside(piece))
    return "".join(out)


def _outside(piece: str) -> str:
    return {r"\s": f"[{_SPACES}]", r"\S": f"[^{_MAYBE_SPACES}]"}.get(piece, piece)
