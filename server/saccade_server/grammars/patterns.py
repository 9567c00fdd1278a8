r"""Regular expressions of JSON schemas, which are JavaScript's, as llguidance reads them.

Both mean the same by most of what is written. What is read differently is rewritten here so that a
text which matches does so for everybody (the dot, which in JavaScript is none of four line ends,
white space, digits and letters of words), or refused.
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
_CLASSES: Final = {
    "s": (_SPACES, _MAYBE_SPACES),
    "d": ("0-9", r"\p{Nd}"),
    "w": ("0-9A-Za-z_", r"\p{L}\p{M}\p{N}\p{Pc}\p{Alphabetic}\u200c\u200d"),
}
"""Letter of a class -> what is in it to everybody, what is to some."""
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
            out.append(_inside(piece, negated))
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
    within = _inside(piece, False)
    return f"[{within}]" if piece[1:] in _CLASSES else within


def _inside(piece: str, negated: bool) -> str:
    """A class as brackets have it, in which nothing is that belongs to it for some readers only."""
    letter = piece[1:]
    narrow, wide = _CLASSES.get(letter.lower(), ("", ""))
    if not narrow or piece[0] != "\\":
        return piece
    if letter.islower():
        return wide if negated else narrow
    return f"[^{narrow if negated else wide}]"
