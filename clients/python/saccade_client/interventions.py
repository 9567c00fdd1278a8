"""Name an intervention: as an object, as a plain dict, or in shorthand.

    Intervention("var", move_fraction=0.6, layers=[2, 3])
    {"method": "var", "move_fraction": 0.6, "layers": [2, 3]}
    "var:move_fraction=0.6,layers=[2,3]"

All three become the same flat JSON entry. Parameters are not checked here: the server knows each
method's schema, and refuses what does not fit it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from saccade_client.errors import InvalidInput

NAME = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)
# Numbers people write and JSON does not: .5, 1., +3
LOOSE_INTEGER = re.compile(r"[+-]?[0-9]{1,100}")
LOOSE_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
PYTHON_WORDS = {"True": True, "False": False, "None": None}


class Intervention:
    """One method with its parameters; immutable, and equal to any other with the same entry."""

    __slots__ = ("_entry",)
    _entry: dict[str, Any]

    def __init__(self, method: str, **parameters: Any) -> None:
        if not isinstance(method, str) or not NAME.fullmatch(method):
            raise InvalidInput(f"an intervention's method is a name such as 'var', not {method!r}")
        self._entry = {"method": method}
        for name, value in parameters.items():
            self._entry[name] = plain(value, f"{method}.{name}")

    @classmethod
    def parse(cls, shorthand: str) -> "Intervention":
        """Read `method` or `method:name=value,…`; values are JSON, or bare words for strings."""
        method, colon, rest = shorthand.strip().partition(":")
        parameters: dict[str, Any] = {}
        for name, value in assignments(rest, shorthand) if colon else ():
            if name in parameters or name == "method":
                reject(shorthand, f"{name!r} is given twice")
            parameters[name] = value
        return cls(method.strip(), **parameters)

    @property
    def method(self) -> str:
        return str(self._entry["method"])

    @property
    def parameters(self) -> dict[str, Any]:
        return {name: value for name, value in self.entry().items() if name != "method"}

    def entry(self) -> dict[str, Any]:
        """Return a fresh copy of the JSON entry that goes on the wire."""
        copy: dict[str, Any] = plain(self._entry, self.method)
        return copy

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervention) and self._entry == other._entry

    def __hash__(self) -> int:
        return hash(json.dumps(self._entry, sort_keys=True))

    def __repr__(self) -> str:
        parameters = "".join(f", {name}={value!r}" for name, value in self.parameters.items())
        return f"Intervention({self.method!r}{parameters})"


InterventionLike = Intervention | Mapping[str, Any] | str
Interventions = InterventionLike | Sequence[InterventionLike]


def entries(interventions: Interventions) -> list[dict[str, Any]]:
    """Return the wire list for one intervention or several, in order. Raises InvalidInput."""
    if isinstance(interventions, Intervention | Mapping | str):
        interventions = [interventions]
    if not isinstance(interventions, Sequence):
        raise InvalidInput(f"interventions are a list, not {type(interventions).__name__}")
    return [entry(item, index) for index, item in enumerate(interventions)]


def entry(item: InterventionLike, index: int) -> dict[str, Any]:
    if isinstance(item, str):
        return Intervention.parse(item).entry()
    if isinstance(item, Intervention):
        return item.entry()
    if not isinstance(item, Mapping):
        wanted = "an Intervention, a dict or a shorthand string"
        raise InvalidInput(f"interventions[{index}] is {type(item).__name__}; give {wanted}")
    if not isinstance(item.get("method"), str):
        raise InvalidInput(f"interventions[{index}] lacks 'method', the name of the method")
    copy: dict[str, Any] = plain(item, f"interventions[{index}]")
    return copy


def plain(value: Any, path: str) -> Any:
    """Copy a value into JSON's own types: ranges, tuples, arrays and their scalars are welcome."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    raise InvalidInput(f"{path} is {type(value).__name__}, which JSON cannot carry")


def assignments(text: str, shorthand: str) -> Iterator[tuple[str, Any]]:
    """Yield the `name=value` pairs of a shorthand; commas inside JSON values do not separate."""
    while True:
        name, equals, text = text.partition("=")
        if not equals or not NAME.fullmatch(name.strip()):
            hint = "parameters are name=value; write a list as layers=[2,3]"
            reject(shorthand, f"{name.strip()!r} is not a parameter: {hint}")
        value, text, more = next_value(text.lstrip(), shorthand)
        yield name.strip(), value
        if not more:
            return


def next_value(text: str, shorthand: str) -> tuple[Any, str, bool]:
    """Read one value off `text`; return it, the text after its comma, and whether there was one."""
    try:
        value, end = json.JSONDecoder(parse_constant=str).raw_decode(text)
    except (ValueError, RecursionError) as error:
        if text[:1] in ("[", "{", '"'):
            raise InvalidInput(f"{shorthand!r}: {text!r} is not JSON: {error}") from error
    else:
        rest = text[end:].lstrip()
        if not rest or rest.startswith(","):
            return value, rest[1:], bool(rest)
    word, comma, rest = text.partition(",")
    return bare_word(word.strip(), shorthand), rest, bool(comma)


def bare_word(word: str, shorthand: str) -> Any:
    if not word:
        reject(shorthand, 'a value is missing; write "" for an empty string')
    if word in PYTHON_WORDS:
        return PYTHON_WORDS[word]
    if LOOSE_INTEGER.fullmatch(word):
        return int(word)
    return float(word) if LOOSE_NUMBER.fullmatch(word) else word


def reject(shorthand: str, reason: str) -> NoReturn:
    raise InvalidInput(f"{shorthand!r}: {reason}")
