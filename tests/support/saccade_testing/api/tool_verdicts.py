"""What the values of the fields about tools do; see tests/server/api/test_walk.py."""

import copy
from typing import Any

from saccade_testing.api.verdicts import Verdict

FUNCTION = {"name": "f", "description": "Does f", "parameters": {"type": "object"}}
OFFERED = {"type": "function", "function": FUNCTION}
OTHER = {"type": "function", "function": {"name": "g"}}
NAMED = {"type": "function", "function": {"name": "f"}}
NAMED_OTHER = {"type": "function", "function": {"name": "g"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
NO_PROPERTIES = {"type": "object", "properties": {}}
KIND = Verdict(refused=["x", 5, None])
FUNCTION_NAME = Verdict(["g"], [], ["h", "", 5, None])

TOOLS = {
    "Templated.tools": Verdict(
        [[OFFERED], [OFFERED, OTHER]], [[]], [{}, "x", 5, [{}], [OTHER, OTHER], [OTHER] * 129]
    ),
    "Templated.tool_choice": Verdict(
        ["none"], ["auto"], ["x", 5, [], {}, NAMED_OTHER], beside={"tools": [OFFERED]}
    ),
    "ChatRequest.parallel_tool_calls": Verdict(
        [False], [True], ["x", 1, []], beside={"tools": [OFFERED]}
    ),
    "OfferedTool.type": KIND,
    "OfferedTool.function": Verdict([{"name": "f"}], [], ["x", {}, 5, None, {"name": "g"}]),
    "FunctionTool.name": Verdict(["h"], [], ["", "a b", "x" * 65, "g", 5, None]),
    "FunctionTool.description": Verdict(["x"], [""], [5, []]),
    "FunctionTool.parameters": Verdict(
        [{"type": "object", "required": ["a"]}], [{}, NO_PROPERTIES], ["x", [], {"type": "array"}]
    ),
    "FunctionTool.strict": Verdict([True], [False], [1, "x"]),
    "NamedTool.type": KIND,
    "NamedTool.function": Verdict([{"name": "g"}], [], ["x", {}, 5, None, {"name": "h"}]),
    "NamedFunction.name": FUNCTION_NAME,
    "AllowedChoice.type": KIND,
    "AllowedChoice.allowed_tools": Verdict(
        [{"mode": "required", "tools": [NAMED_OTHER]}], [], ["x", {}, 5, None]
    ),
    "AllowedTools.mode": Verdict(["auto"], [], ["none", 5, None]),
    "AllowedTools.tools": Verdict([[NAMED_OTHER], [NAMED, NAMED_OTHER]], [], [[], {}, [{}], None]),
}
OWNERS = {key.partition(".")[0] for key in TOOLS} - {"Templated", "ChatRequest"}


def tool_body(owner: str, name: str, values: list[Any]) -> dict[str, Any]:
    """Fields of a chat; the one tried has the value, or is left out."""
    offered, choice = copy.deepcopy(OFFERED), copy.deepcopy(NAMED)
    allowed = copy.deepcopy(ALLOWED)
    places: dict[str, Any] = {
        "OfferedTool": offered,
        "FunctionTool": offered["function"],
        "NamedTool": choice,
        "NamedFunction": choice["function"],
        "AllowedChoice": allowed,
        "AllowedTools": allowed["allowed_tools"],
    }
    if values:
        places[owner][name] = values[0]
    elif name not in ("type", "mode"):
        places[owner].pop(name, None)
    body: dict[str, Any] = {"tools": [offered, OTHER]}
    if owner.startswith("Named"):
        body["tool_choice"] = choice
    if owner.startswith("Allowed"):
        body["tool_choice"] = allowed
    return body
