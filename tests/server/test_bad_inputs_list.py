"""The list of what goes wrong names tests that there are."""

import re
import tomllib
from pathlib import Path

TESTS = Path(__file__).parents[1]
LISTED = tomllib.loads((TESTS / "server" / "bad_inputs.toml").read_text())


def test_every_bad_input_has_its_tests() -> None:
    for group, inputs in LISTED.items():
        for what, tests in inputs.items():
            assert tests, f"{group}: {what}"
            for test in tests:
                file, _, name = test.partition("::")
                text = (TESTS / file).read_text()
                assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), test
