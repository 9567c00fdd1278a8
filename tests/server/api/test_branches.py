"""Methods with branches over HTTP: what the engine is asked for, and what is refused."""

import json

import numpy as np
import pytest
from msgspec.structs import replace as with_fields

from saccade_interventions.methods.vcd import kept
from saccade_server.engine.limits import why_group_refused
from saccade_server.requests import branches
from saccade_testing.api.bodies import PICTURE, chat_body, image_messages
from saccade_testing.api.fakes import INFO, FakeEngine
from saccade_testing.api.server import MakeServer, Server

VCD_ENTRY = {"method": "vcd", "noise_seed": 3}
PAI_ENTRY = {"method": "pai_contrast", "gamma": 1.5}


def asked(server, entry, **fields):
    messages = image_messages(PICTURE, PICTURE)
    response = server.chat(messages=messages, interventions=[entry], **fields)
    assert response.status_code == 200, response.text
    return server.engine.requests


def test_vcd_sends_the_same_tokens_with_noised_images(server: Server):
    (request,) = asked(server, VCD_ENTRY)
    (branch,) = request.branches
    assert (branch.tokens, branch.plan, branch.measures) == (request.tokens, None, False)
    seen = set()
    for index, (clean, noised) in enumerate(zip(request.images, branch.images, strict=True)):
        assert (noised.start, noised.length) == (clean.start, clean.length)
        pixels = clean.pixels.unpack()
        noise = np.random.default_rng((3, index)).standard_normal(pixels.shape, np.float32)
        expected = kept(500) ** 0.5 * pixels + (1 - kept(500)) ** 0.5 * noise
        np.testing.assert_allclose(noised.pixels.unpack(), expected, rtol=1e-5, atol=1e-5)
        seen |= {clean.digest, noised.digest}
    assert len(seen) == 3  # one picture twice, noised in two ways


@pytest.mark.parametrize("entries", [[], [VCD_ENTRY]])
def test_vhd_sends_the_text_alone_beside_what_methods_send(server: Server, entries):
    """Each of two answers has one, behind the method's own, read at the rows that go with its."""
    messages = image_messages(PICTURE)
    trace = {"vhd": {"layers": [1], "rows": {"answer": [0, 2]}}, "entropy": True}
    found = server.chat(messages=messages, interventions=entries, trace=trace, n=2, max_tokens=3)
    assert found.status_code == 200, found.text
    assert len(server.engine.requests) == 2
    for request, choice in zip(server.engine.requests, found.json()["choices"], strict=True):
        *others, branch = request.branches
        assert len(others) == len(entries)
        gone = len(request.tokens) - len(branch.tokens)
        assert gone > 0
        assert branch.images == ()
        first = len(request.tokens) - 1
        (reading,) = branch.trace.readings
        assert reading.rows == (first - gone, first - gone + 2)
        assert reading in [
            with_fields(own, rows=reading.rows)
            for own in request.trace.readings
            if own.rows == (first, first + 2)
        ]
        arrays = choice["trace"]["arrays"]
        assert arrays["vhd"]["shape"] == [2, 1, 4]
        assert arrays["t_vhd"]["shape"] == [2]


def test_vhd_is_refused_where_its_branch_has_no_room(make_server: MakeServer):
    info = with_fields(INFO, max_num_seqs=1)
    server = make_server(engine=FakeEngine(info=info))
    trace = {"vhd": {"rows": {"answer": [0, 1]}}}
    found = server.chat(messages=image_messages(PICTURE), trace=trace, max_tokens=2)
    assert found.status_code == 400
    assert found.json()["error"]["param"] == "trace.vhd"
    assert "2 sequences at once" in found.json()["error"]["message"]


def test_noised_images_are_kept_for_the_same_image_seed_and_share_alone(server: Server):
    def pixels(entry):
        (branch,) = asked(server, entry)[-1].branches
        return [image.pixels for image in branch.images]

    first, again = pixels(VCD_ENTRY), pixels(VCD_ENTRY)
    assert all(one is other for one, other in zip(first, again, strict=True))
    for entry in ({"noise_seed": 4}, {"noise_step": 400}):
        others = pixels(VCD_ENTRY | entry)
        assert all(one != other for one, other in zip(first, others, strict=True))
    assert branches._NOISED._bytes <= branches.MOST_BYTES


def test_pai_contrast_sends_the_text_alone(server: Server):
    (request,) = asked(server, PAI_ENTRY)
    (branch,) = request.branches
    assert branch.images == ()
    features = {p for i in request.images for p in range(i.start, i.start + i.length)}
    left = [token for at, token in enumerate(request.tokens) if at not in features]
    assert list(branch.tokens) == left
    assert len(left) == len(request.tokens) - 8


def test_every_copy_has_its_branches(server: Server):
    requests = asked(server, VCD_ENTRY, n=3)
    assert len({request.branches for request in requests}) == 1
    assert len({request.sampling.seed for request in requests}) == 3


def test_a_stream_says_the_same_as_a_whole_answer(server: Server):
    messages = image_messages(PICTURE)
    body = {"messages": messages, "interventions": [PAI_ENTRY]}
    whole = server.chat(**body).json()["choices"][0]["message"]["content"]
    events = server.events(**body)
    pieces = [e["choices"][0]["delta"].get("content", "") for e in events[:-1] if e["choices"]]
    assert "".join(pieces) == whole


def test_the_default_length_leaves_room_for_all(make_server: MakeServer):
    info = with_fields(INFO, cache_tokens=512)
    server = make_server(FakeEngine(info))
    messages = image_messages(PICTURE)
    server.chat(messages=messages)
    server.chat(messages=messages, interventions=[VCD_ENTRY])
    plain, contrasted = server.engine.requests
    assert plain.sampling.max_tokens == 512 - len(plain.tokens)
    length = len(plain.tokens)
    most = contrasted.sampling.max_tokens
    assert most == 512 // 2 - length  # four pages each
    assert why_group_refused(contrasted, info) is None


@pytest.mark.parametrize(
    ("limits", "fields", "says"),
    [
        ({"max_num_seqs": 1}, {}, "2 sequences at once"),
        ({"cache_tokens": 512}, {"max_tokens": 400}, "tokens of cache"),
        ({"cache_tokens": 64}, {}, "tokens of cache"),
    ],
)
def test_what_the_server_cannot_hold_is_refused(make_server: MakeServer, limits, fields, says):
    server = make_server(FakeEngine(with_fields(INFO, **limits)))
    messages = image_messages(PICTURE, text="?")
    response = server.chat(messages=messages, interventions=[VCD_ENTRY], **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("request_too_large", "interventions")
    assert says in error["message"]
    assert not server.engine.requests
    assert server.chat(messages=messages, max_tokens=5).status_code == 200


def test_a_rehearsal_counts_what_runs_beside_the_prompt(make_server: MakeServer):
    """Without a prompt as with one: the server has no place for a second sequence."""
    server = make_server(FakeEngine(with_fields(INFO, max_num_seqs=1)))
    messages = image_messages(PICTURE, text="?")
    verdicts = {}
    for method in ("vcd", "pai_contrast", "vhr", "pai", "var", "dola"):
        body = {"interventions": [{"method": method}]}
        rehearsed = server.http.post("/v1/interventions/validate", json=body)
        real = server.chat(messages=messages, max_tokens=1, **body)
        assert rehearsed.status_code == real.status_code, (rehearsed.text, real.text)
        verdicts[method] = real.status_code
        if real.status_code != 200:
            assert rehearsed.json() == real.json()
    assert verdicts == dict.fromkeys(("vcd", "pai_contrast", "vhr"), 400) | dict.fromkeys(
        ("pai", "var", "dola"), 200
    )


@pytest.mark.parametrize("entry", [VCD_ENTRY, PAI_ENTRY])
def test_no_image(server: Server, entry):
    response = server.chat(interventions=[entry])
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "intervention_requires_image"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1", '"1"', "1e400"])
def test_bad_strengths(server: Server, value):
    messages = image_messages(PICTURE)
    body = json.dumps(chat_body(messages=messages, interventions=["entry"]))
    body = body.replace('"entry"', f'{{"method": "vcd", "alpha": {value}}}')
    headers = {"content-type": "application/json"}
    response = server.http.post("/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400
    assert not server.engine.requests
    assert server.chat().status_code == 200
