"""Schemas of the public JSON-Schema-Test-Suite: read or refused as listed, and what is read holds.

data/verdicts.json says of each group of the suite what becomes of its schema: an error's code, path
and sentence, or the valid instances that the grammar does not have. It is written by
``SACCADE_WRITE_VERDICTS=1 pytest tests/server/grammars/test_json_schema_suite.py``.
"""

import json
import os
from decimal import Decimal
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from saccade_server.grammars.errors import GrammarError
from saccade_server.grammars.json_schema import of_schema
from saccade_testing.drawn_texts import accepts, byte_writer, demo_writer

DATA = Path(__file__).parent / "data"
VERDICTS = DATA / "verdicts.json"
SUITE = json.loads((DATA / "json_schema_suite.json").read_text())["files"]
KNOWN = json.loads(VERDICTS.read_text()) if VERDICTS.exists() else {}
WRITES = os.environ.get("SACCADE_WRITE_VERDICTS") == "1"
UNLIKE = {
    # The suite's own meta-schema has no keywords that bind; grammars know the standard ones.
    "vocabulary",
}


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def verdict(group):
    try:
        source = of_schema(group["schema"])
    except GrammarError as error:
        path = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in error.path)
        return {"refused": error.code, "at": path, "because": error.message}
    tests = [(t, accepts(byte_writer(), source, compact(t["data"]))) for t in group["tests"]]
    assert not [t["description"] for t, has in tests if has and not t["valid"]]
    return {"narrower": [t["description"] for t, has in tests if t["valid"] and not has]}


@pytest.mark.parametrize("name", SUITE)
def test_each_schema_is_read_or_refused_as_listed(name):
    found = {group["description"]: verdict(group) for group in SUITE[name]}
    if WRITES:
        KNOWN[name] = found
        write(KNOWN)
    assert found == KNOWN[name]


def write(verdicts):
    """One line for each schema, so that a change shows as what it is."""
    files = []
    for name in SUITE:
        groups = verdicts.get(name, {}).items()
        lines = [f"{json.dumps(group)}: {json.dumps(found)}" for group, found in groups]
        files.append(f"{json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n}")
    VERDICTS.write_text("{\n" + ",\n".join(files) + "\n}\n")


def read_groups():
    for name, groups in SUITE.items():
        for group in groups:
            if "narrower" in KNOWN.get(name, {}).get(group["description"], {}):
                yield pytest.param(name, group["schema"], id=f"{name}-{group['description']}")


@pytest.mark.parametrize(("name", "schema"), list(read_groups()))
def test_all_that_random_logits_write_is_valid(name, schema):
    if name in UNLIKE:
        pytest.skip("a validator of the plain draft knows no other meta-schema")
    source = of_schema(schema)
    validator = Draft202012Validator(as_decimals(schema))
    for writer in (byte_writer(), demo_writer()):
        for seed in range(3):
            text = writer.text(source, seed)
            assert text is not None, seed
            validator.validate(json.loads(text, parse_float=Decimal))


def as_decimals(value):
    """Multiples are told in decimal numbers, as they are written."""
    return json.loads(json.dumps(value), parse_float=Decimal)


def test_more_than_a_hundred_schemas_of_every_file_are_there():
    found = [verdict for groups in KNOWN.values() for verdict in groups.values()]
    assert len(found) >= 350
    assert sum("narrower" in verdict for verdict in found) >= 160
    assert set(KNOWN) == set(SUITE)
    sentences = {v["because"] for v in found if "refused" in v}
    assert all(s.endswith(".") and "\n" not in s and len(s) < 250 for s in sentences)
