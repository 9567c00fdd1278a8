"""Receipts and usage on the wire: whole answers and streams, and what official clients see."""

import pytest

from saccade_testing.api.bodies import MODEL, PICTURE, image_messages, parse_events
from saccade_testing.api.server import Server

PAI = {"method": "pai", "layers": [1, 2], "heads": [0, 3]}
VAR = {"method": "var", "layers": [2], "rows": "generated"}


@pytest.mark.parametrize("stream", [False, True])
def test_the_receipt_on_the_wire(server: Server, stream):
    fields = {"messages": image_messages(PICTURE), "interventions": [PAI, VAR]}
    if stream:
        events = server.events(stream_options={"include_usage": True}, **fields)[:-1]
        *early, last, usage = events
        assert not any("interventions_applied" in event for event in early)
        assert last["choices"][0]["finish_reason"] == "stop"
        assert usage["interventions_applied"] == last["interventions_applied"]
        body = last
    else:
        body = server.chat(**fields).json()
    assert [entry["status"] for entry in body["interventions_applied"]] == ["applied"] * 2
    assert body["interventions_applied"][0]["rows"]["generated"] == 13


def test_a_stop_string_does_not_lose_the_receipt(server: Server):
    fields = {"messages": image_messages(PICTURE), "interventions": [PAI]}
    (entry,) = server.chat(stop="wor", **fields).json()["interventions_applied"]
    assert entry["status"] == "applied"
    assert 0 < entry["rows"]["generated"] < 14


def test_fingerprints_on_the_wire(server: Server):
    messages = image_messages(PICTURE)
    plain = server.chat(messages=messages)
    edited = server.chat(messages=messages, interventions=[PAI])
    again = server.chat(messages=messages, interventions=[PAI], stream=True)
    assert "x-intervention-fingerprint" not in plain.headers
    assert "interventions_applied" not in plain.json()
    name = edited.headers["x-intervention-fingerprint"]
    assert name == again.headers["x-intervention-fingerprint"]
    assert plain.json()["system_fingerprint"] != edited.json()["system_fingerprint"]
    events = parse_events(again.text)
    assert events[0]["system_fingerprint"] == edited.json()["system_fingerprint"]


def test_the_official_client_sees_the_receipt(server: Server):
    reply = server.openai().chat.completions.create(
        model=MODEL,
        messages=image_messages(PICTURE),
        extra_body={"interventions": [VAR]},
    )
    assert reply.interventions_applied[0]["method"] == "var"


@pytest.mark.parametrize("stream", [False, True])
def test_usage_on_the_wire(server: Server, stream):
    """The scripted engine says one draw and one rejection a token."""

    def usage(interventions):
        fields = {"messages": image_messages(PICTURE), "interventions": interventions}
        if stream:
            return server.events(stream_options={"include_usage": True}, **fields)[-2]["usage"]
        return server.chat(**fields).json()["usage"]

    found = usage([{"method": "sgrs"}])
    count = found["completion_tokens"]
    details = {"saliency_draws": count, "saliency_rejections": count}
    assert found["completion_tokens_details"] == details
    assert "completion_tokens_details" not in usage([{"method": "pai"}])
    assert "completion_tokens_details" not in usage([{"method": "sgrs", "alpha": 0}])
