"""What detectors found, as the SDK has it: whole answers and streams."""

import base64

import pytest

import saccade_client as sdk
from saccade_testing.api.bodies import PICTURE
from saccade_testing.api.server import check_servers, start_server

IMAGE = base64.b64decode(PICTURE.partition(",")[2])
ASKED = {
    "images": IMAGE,
    "detectors": [{"name": "anatomy_of_a_lie"}, {"name": "svar", "threshold": 9, "layers": [1]}],
    "max_tokens": 4,
    "n": 2,
}


@pytest.fixture(scope="module")
def client():
    server = start_server(served_model_name="tiny", api_keys=("k",))
    with sdk.Saccade(server.url, "k") as client:
        yield client
    server.stop()
    check_servers()


def test_an_answer_has_them(client):
    answer = client.chat("What?", **ASKED)
    lie, svar = answer.detectors
    assert isinstance(svar, sdk.Detected)
    assert (lie.name, lie.score) == ("anatomy_of_a_lie", None)
    assert lie.reason
    assert svar.flagged == (svar.score < 9)
    assert len(svar.tokens) == 4
    assert answer.choices[1].detectors == answer.detectors
    assert client.chat("Hi").detectors == []


def test_a_stream_ends_with_them(client):
    whole = client.chat("What?", **ASKED)
    with client.stream_chat("What?", **ASKED) as stream:
        for _ in stream:
            pass
        assert [c.detectors for c in stream.final.choices] == [c.detectors for c in whole.choices]


def test_mistakes_are_refused_with_their_path(client):
    with pytest.raises(sdk.BadRequest) as refused:
        client.complete("Hi", detectors=[{"name": "savr"}])
    assert refused.value.param == "detectors[0].name"
