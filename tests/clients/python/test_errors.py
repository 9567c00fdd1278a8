import pickle
import re
from pathlib import Path

import httpx2
import pytest

import saccade_client as sdk
from saccade_client import errors, failures

ROOT = Path(__file__).parents[3]


def reply(status: int, content: bytes = b"", **headers: str) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.Response(status, content=content, headers=named)


OBJECT = (
    b'{"error":{"message":"no such field","type":"invalid_request_error",'
    b'"param":"interventions[0].rh","code":"intervention_unknown_field"}}'
)


def test_an_error_object_is_taken_apart():
    error = failures.reply_error(reply(400, OBJECT, x_request_id="r-1"))
    assert type(error) is sdk.BadRequest
    assert (error.status, error.code) == (400, "intervention_unknown_field")
    assert (error.param, error.request_id) == ("interventions[0].rh", "r-1")
    assert error.body["error"]["type"] == "invalid_request_error"
    assert str(error) == (
        "400 intervention_unknown_field at interventions[0].rh: no such field (request r-1)"
    )


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, sdk.APIError),
        (400, sdk.BadRequest),
        (401, sdk.Authentication),
        (403, sdk.Authentication),
        (404, sdk.NotFound),
        (405, sdk.APIError),
        (413, sdk.TooLarge),
        (422, sdk.BadRequest),
        (429, sdk.RateLimited),
        (500, sdk.ServerError),
        (503, sdk.ServerBusy),
        (504, sdk.ServerError),
    ],
)
def test_the_class_follows_the_status(status, kind):
    assert type(failures.reply_error(reply(status))) is kind


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>Bad Gateway</html>", "<html>Bad Gateway</html>"),
        (b"x" * 5000, "x" * 200),
        (b"", "Bad Gateway"),
        (b"  \n", "Bad Gateway"),
        (b"\xff\xfe", "��"),
        (b'{"detail":"gone"}', '{"detail": "gone"}'),
        (b'{"error":"plain words"}', "plain words"),
        (b'{"error":{"code":7}}', '{"error": {"code": 7}}'),
        (b"[1, 2]", "[1, 2]"),
        (b"null", "null"),
        (b"[" * 100_000, "[" * 200),
    ],
)
def test_any_body_makes_a_message(content, message):
    assert failures.reply_error(reply(502, content)).message == message


def test_a_numeric_code_is_text_as_openai_clients_have_it():
    assert failures.reply_error(reply(500, b'{"error":{"code":7,"message":"m"}}')).code == "7"


def test_a_redirect_names_its_target():
    error = failures.reply_error(reply(308, location="https://host/v1"))
    assert "redirected to https://host/v1: set base_url" in str(error)


@pytest.mark.parametrize(
    ("kind", "expected", "status"),
    [
        ("invalid_request_error", sdk.BadRequest, 400),
        ("authentication_error", sdk.Authentication, 401),
        ("rate_limit_error", sdk.RateLimited, 429),
        ("overloaded_error", sdk.ServerBusy, 503),
        ("server_error", sdk.ServerError, 500),
        (None, sdk.ServerError, 500),
        ([], sdk.ServerError, 500),
    ],
)
def test_a_streamed_error_follows_its_type(kind, expected, status):
    error = failures.streamed_error({"error": {"message": "m", "type": kind}}, "r-2")
    assert type(error) is expected
    assert (error.status, error.message, error.request_id) == (status, "m", "r-2")


def test_a_streamed_error_may_be_bare_words():
    assert failures.streamed_error({"error": "oops"}, None).message == "oops"
    assert "inside the stream" in failures.streamed_error({"error": {"x": 1}}, None).message


@pytest.mark.parametrize(
    "error",
    [
        failures.reply_error(reply(400, OBJECT, x_request_id="r-1")),
        sdk.StreamInterrupted("cut", text="so far", request_id="r-3"),
        sdk.Timeout("late"),
        sdk.InvalidInput("odd"),
        sdk.MissingPackage("numpy"),
        sdk.AnswerTruncated("cut", text="so far"),
        sdk.ArgumentsInvalid("odd", text="{"),
    ],
)
def test_errors_survive_pickling(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def depths_of(drawing):
    """The depth of a name in a drawing is its distance from SaccadeError."""
    drawn = re.findall(r"^([│ ├└─]*)([A-Z]\w+)", drawing, re.MULTILINE)
    return {name: len(indent) // 4 for indent, name in drawn}


def test_the_drawn_trees_are_the_real_one():
    classes = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, sdk.SaccadeError)
    }
    bases = {name: value.__mro__.index(sdk.SaccadeError) for name, value in classes.items()}
    assert depths_of(str(errors.__doc__).split("\n\n", 1)[1]) == bases
    readme = (ROOT / "clients/python/README.md").read_text()
    assert depths_of(readme.split("## Errors\n\n```text\n")[1].partition("```")[0]) == bases
    assert set(classes) <= set(sdk.__all__)
    assert issubclass(sdk.InvalidInput, ValueError)
    assert issubclass(sdk.MissingPackage, ImportError)
