"""The file of keys: what it says, and what it must not."""

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest

from saccade_server.api.access.key_file import (
    KeyFileError,
    check_distinct,
    check_tokens,
    load_keys,
    read_keys,
)
from saccade_server.api.access.keys import Key, Limits, digest_of, plain_keys
from saccade_server.api.settings import ApiSettings

DIGEST = digest_of("secret-of-bob").hex()
FILE = f"""
[keys.alice]
key = "secret-of-alice"
requests_per_minute = 60
tokens_per_minute = 100000
priority_ceiling = -2

[keys.bob]
sha256 = "{DIGEST}"
admin = true
priority = 5
images_per_minute = 120
concurrent_requests = 8
"""


def read(text: str) -> tuple[Key, ...]:
    return read_keys(tomllib.loads(text))


def test_what_a_file_says(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(FILE)
    assert load_keys(path) == (
        Key("alice", digest_of("secret-of-alice"), False, 0, -2, Limits(60, 100000)),
        Key("bob", digest_of("secret-of-bob"), True, 5, 0, Limits(None, None, 120, 8)),
    )


def test_priorities_that_are_left_out_allow_nothing_special() -> None:
    for told, found in {
        "": (0, 0),
        "priority = 3": (3, 0),
        "priority = -3": (-3, -3),
        "priority_ceiling = 4": (4, 4),
        "priority_ceiling = -4": (0, -4),
    }.items():
        (key,) = read(f'[keys.a]\nkey = "k"\n{told}')
        assert (key.priority, key.priority_ceiling) == found


BAD = {
    "": "no key",
    "[key.a]\nkey = 'k'": "unknown table 'key'",
    "keys = 5": "keys are tables",
    "[keys]\na = 'secret'": "keys are tables",
    "[keys.a]": "one of them",
    f"[keys.a]\nkey = 'secret'\nsha256 = '{DIGEST}'": "one of them",
    "[keys.a]\nkey = 'a secret'": "without blanks",
    "[keys.a]\nkey = ''": "without blanks",
    "[keys.a]\nkey = 5": "must be a text",
    "[keys.a]\nsha256 = 'secret'": "64 hexadecimal",
    "[keys.a]\nkey = 'secret'\nrequest_per_minute = 5": "requests_per_minute",
    "[keys.a]\nkey = 'secret'\nrequests_per_minute = 0": "above 0",
    "[keys.a]\nkey = 'secret'\nrequests_per_minute = 1.5": "above 0",
    "[keys.a]\nkey = 'secret'\nconcurrent_requests = true": "above 0",
    "[keys.a]\nkey = 'secret'\ntokens_per_minute = 99999999999": "above 0",
    "[keys.a]\nkey = 'secret'\nadmin = 1": "true or false",
    "[keys.a]\nkey = 'secret'\npriority = 'high'": "whole number",
    "[keys.a]\nkey = 'secret'\npriority = -1\npriority_ceiling = 0": "more urgent",
    "[keys.'a b']\nkey = 'secret'": "letters, digits",
    "[keys.a]\nkey = 'secret'\n[keys.b]\nkey = 'secret'": "'a' and 'b' are the same key",
}


@pytest.mark.parametrize("text", BAD)
def test_a_wrong_file_is_refused_without_its_keys(text: str) -> None:
    with pytest.raises(KeyFileError) as refusal:
        read(text)
    assert BAD[text] in str(refusal.value)
    assert "secret" not in str(refusal.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    with pytest.raises(KeyFileError, match="cannot be read"):
        load_keys(path)
    path.write_bytes(b"\xff")
    with pytest.raises(KeyFileError, match="UTF-8"):
        load_keys(path)
    path.write_text("[keys")
    with pytest.raises(KeyFileError, match="not TOML"):
        load_keys(path)
    path.write_text("")
    with pytest.raises(KeyFileError, match=f"{path}: there is no key"):
        load_keys(path)


def test_keys_of_options_and_of_the_file_are_different_keys() -> None:
    named = read(FILE)
    check_distinct((*plain_keys(["one"], ["root"]), *named))
    with pytest.raises(KeyFileError, match="'api-key-1' and 'alice' are the same"):
        check_distinct((*plain_keys(["secret-of-alice"], []), *named))
    with pytest.raises(KeyFileError, match="two keys are called 'api-key-1'"):
        check_distinct((*plain_keys(["one"], []), *read("[keys.api-key-1]\nkey = 'k'")))


def limited(**limits: int) -> tuple[Key, ...]:
    return (Key("a", b"", limits=Limits(**limits)),)


@pytest.mark.parametrize(
    ("limits", "settings", "message"),
    [
        ({"concurrent_requests": 9}, {"max_requests": 8}, "never reached"),
        ({"images_per_minute": 15}, {"max_images": 16}, "of one request"),
    ],
)
def test_limits_that_contradict_the_servers(
    limits: dict[str, int], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(KeyFileError, match=message):
        ApiSettings(served_model_name="m", keys=limited(**limits), **settings)


def test_a_limit_below_what_a_prompt_may_have(make_server) -> None:
    keys = limited(tokens_per_minute=511)
    with pytest.raises(KeyFileError, match=r"--max-model-len"):
        check_tokens(keys, 512)
    check_tokens(keys, 511)
    with pytest.raises(KeyFileError, match="tokens_per_minute = 100"):
        make_server(keys=limited(tokens_per_minute=100))


@pytest.fixture
def command(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(FILE)
    os.chmod(path, 0o600)
    return path


def test_the_command_reads_it(command: Path) -> None:
    from saccade_server.serve_options.access import AccessOptions

    settings = AccessOptions(api_key=["one"], key_file=command).settings()
    assert [key.name for key in settings["keys"]] == ["alice", "bob"]
    with pytest.raises(KeyFileError):
        AccessOptions(api_key=["secret-of-alice"], key_file=command).settings()
