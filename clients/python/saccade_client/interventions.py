"""Name an intervention: as an object, as a plain dict, or in shorthand.

    Intervention("var", move_fraction=0.6, layers=[2, 3])
    {"method": "var", "move_fraction": 0.6, "layers": [2, 3]}
    "var:move_fraction=0.6,layers=2|3"

All three become the same flat JSON entry. Parameters are not checked here: the server knows each
method's schema, and refuses what does not fit it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from saccade_client import shorthand
from saccade_client.errors import InvalidInput

NAME = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)


class Intervention:
    """One method with its parameters; immutable, and equal to any other with the same entry."""

    __slots__ = ("_entry",)
    _entry: dict[str, Any]

    def __init__(self, /, method: str, **parameters: Any) -> None:
        if not isinstance(method, str) or not NAME.fullmatch(method):
            raise InvalidInput(f"an intervention's method is a name such as 'var', not {method!r}")
        self._entry = {"method": method}
        for name, value in parameters.items():
            self._entry[name] = plain(value, f"{method}.{name}")

    @classmethod
    def parse(cls, text: str) -> "Intervention":
        """Read shorthand: `method`, or `method:name=value,name=value`. Raises InvalidInput."""
        method, parameters = shorthand.parse(text)
        return cls(method, **parameters)

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
    """Copy a value into JSON's own types: ranges, tuples, arrays and their scalars are welcome.

    Raises InvalidInput.
    """
    try:
        return copied(value, path)
    except RecursionError as error:
        raise InvalidInput(f"{path.partition('.')[0]} is nested too deeply for JSON") from error


def copied(value: Any, path: str) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): copied(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [copied(item, f"{path}[{index}]") for index, item in enumerate(value)]
    raise InvalidInput(f"{path} is {type(value).__name__}, which JSON cannot carry")
