"""The client against the real HTTP layer, over a socket: both must mean the same by every field."""

import asyncio
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

import saccade_client as sdk
from saccade_interventions.artifacts import write_artifact
from saccade_testing.api.server import check_servers, start_server

PIXELS = np.zeros((8, 8, 3), np.uint8)
STEERED = sdk.Intervention("pai", alpha=0.3)


@pytest.fixture(scope="module")
def running():
    """Run the application of the server's own tests: real routes over a scripted engine."""
    entries = [{"method": "pasta", "spans": [[0, 2]], "layers": [1]}]
    server = start_server(
        profiles={"mine": {"description": "Ours.", "interventions": entries}},
        served_model_name="tiny",
        api_keys=("k",),
        admin_keys=("root",),
        max_body_bytes=32 * 2**20,
    )
    yield server
    server.stop()
    check_servers()


@pytest.fixture
def client(running):
    with sdk.Saccade(running.url, "k") as client:
        yield client


def test_a_steered_chat_has_a_receipt(client):
    reply = client.chat("What?", images=PIXELS, interventions=[STEERED], max_tokens=9, seed=1)
    assert reply.text == "Hello, wo"
    assert reply.choices[0].finish_reason == "length"
    assert (reply.model, reply.usage.completion_tokens) == ("tiny", 9)
    (applied,) = reply.interventions_applied
    assert (applied.method, applied.status) == ("pai", "applied")
    assert applied.rows.generated > 0
    assert applied.edits.evaluated > 0
    assert applied.heads == len(applied.layers) * 4
    assert applied.fingerprint.startswith("sha256:")
    assert reply.request_id


def test_options_of_the_prompt_and_of_the_length(client, running):
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "There"}]
    reply = client.chat(
        said, continue_final_message=True, chat_template_kwargs={"mood": "dry"}, min_tokens=3
    )
    assert reply.text == "Hello, world!"
    request = running.engine.requests[-1]
    assert bytes(request.tokens) == b"(mood: dry)<user>a<assistant>There|"
    assert request.sampling.min_tokens == 3
    client.chat(said, add_generation_prompt=False)
    assert bytes(running.engine.requests[-1].tokens) == b"<user>a<assistant>There"
    client.complete("a", add_special_tokens=False)
    assert running.engine.requests[-1].tokens == (97, 255)


def test_a_streamed_chat_is_the_same_answer(client):
    whole = client.chat("What?", images=PIXELS, interventions=[STEERED], n=2)
    with client.stream_chat("What?", images=PIXELS, interventions=[STEERED], n=2) as stream:
        pieces = [chunk.text for chunk in stream]
    assert "".join(pieces) == stream.final.text == whole.text == "Hello, world!"
    assert len(pieces) > 10
    assert stream.final.interventions_applied == whole.interventions_applied != []
    unlike = {"exclude": {"id", "created"}, "exclude_none": True}
    assert stream.final.model_dump(**unlike) == whole.model_dump(**unlike)


def test_log_probabilities(client):
    with client.stream_chat("Hi", logprobs=True, top_logprobs=1, max_tokens=3) as stream:
        list(stream)
    tokens = stream.final.choices[0].logprobs.content
    assert [token.token for token in tokens] == ["H", "e", "l"]
    assert len(tokens[0].top_logprobs) == 1
    reply = client.complete("Hi", logprobs=1, max_tokens=3)
    assert reply.choices[0].logprobs.tokens == ["H", "e", "l"]
    assert reply.choices[0].logprobs.text_offset == [0, 1, 2]


def test_completions_of_text_and_tokens(client):
    assert client.complete("Hi", max_tokens=5).text == "Hello"
    assert client.complete([1, 2], max_tokens=5).text == "Hello"
    assert len(client.complete([[1, 2], [3]], max_tokens=5).choices) == 2
    with client.stream_complete("Hi", max_tokens=5) as stream:
        assert "".join(chunk.text for chunk in stream) == stream.final.text == "Hello"
    assert stream.final.usage.total_tokens == 7


def test_every_option_is_one_the_server_knows(client, running):
    running.engine.requests.clear()
    client.chat(
        "Hi", temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, seed=3, stop=["x"], n=1, max_tokens=2,
        min_tokens=1, repetition_penalty=1.1,
        presence_penalty=0.1, frequency_penalty=0.1, logit_bias={5: 1},
        ignore_eos=True, stop_token_ids=[7], logprobs=True, top_logprobs=2, interventions=[],
    )  # fmt: skip
    sampling = running.engine.requests[0].sampling
    assert msgspec.to_builtins(sampling) == {
        "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 3, "max_tokens": 2,
        "min_tokens": 1, "repetition_penalty": 1.1,
        "presence_penalty": 0.1, "frequency_penalty": 0.1,
        "logit_bias": {5: 1}, "ignore_eos": True, "stop_token_ids": (7,), "logprobs": 2,
        "forced": (),
    }  # fmt: skip
    assert client.chat("Hi", stop=["lo"]).text == "Hel"


def test_profiles(client):
    (profile,) = client.profiles()
    assert (profile.id, profile.description, profile.model) == ("mine", "Ours.", "tiny+mine")
    assert profile.interventions[0]["method"] == "pasta"
    by_name = client.chat("Hi", profile="mine")
    by_model = client.chat("Hi", model="tiny+mine")
    for reply in (by_name, by_model):
        assert reply.intervention_profile == "mine"
        assert [entry.method for entry in reply.interventions_applied] == ["pasta"]
    with client.stream_chat("Hi", profile="mine") as stream:
        list(stream)
    assert stream.final.intervention_profile == "mine"
    assert client.chat("Hi", profile="mine", interventions=[]).interventions_applied == []
    assert client.validate(profile="mine").profile == "mine"
    with pytest.raises(sdk.NotFound) as caught:
        client.chat("Hi", profile="other")
    assert caught.value.code == "profile_not_found"


def test_artifacts(running, client, tmp_path: Path):
    heads = {"heads": np.array([[0, 1]], np.int32)}
    fingerprint = running.engine.info.fingerprint
    data = write_artifact("heads", fingerprint, heads, notes="ours")
    path = tmp_path / "heads.safetensors"
    path.write_bytes(data)
    name = sdk.artifact_id(path)
    assert not client.has_artifact(name)
    with pytest.raises(sdk.Authentication) as refused:
        client.put_artifact(path)
    assert refused.value.code == "admin_key_required"
    with sdk.Saccade(running.url, "k", admin_key="root") as admin:
        made = admin.put_artifact(path)
        assert (made.id, made.kind, made.notes, made.bytes) == (name, "heads", "ours", len(data))
        assert admin.put_artifact(data).id == made.id
        with pytest.raises(sdk.BadRequest) as invalid:
            admin.put_artifact(b"junk")
        assert invalid.value.code == "artifact_invalid"
        foreign = write_artifact("heads", "sha256:" + "cd" * 32, heads)
        with pytest.raises(sdk.BadRequest) as mismatch:
            admin.put_artifact(foreign)
        assert mismatch.value.code == "artifact_mismatch"
    assert client.has_artifact(name)
    assert client.get_artifact(name) == data
    assert [item.id for item in client.artifacts()] == [name]
    with pytest.raises(sdk.NotFound):
        client.get_artifact(sdk.artifact_id(foreign))


def test_discovery_and_dry_run(client):
    assert [model.id for model in client.models()] == ["tiny", "tiny+mine"]
    listed = {info.id: info for info in client.interventions()}
    assert listed["pai"].supported
    assert listed["pai"].paper
    detail = client.intervention("pai")
    assert "alpha" in detail.json_schema["properties"]
    assert client.validate(detail.example).valid
    plain = client.validate([STEERED])
    assert plain.interventions[0].entry["alpha"] == 0.3
    full = client.validate([STEERED], "What?", images=PIXELS)
    assert full.fingerprint == plain.fingerprint
    assert (full.interventions[0].status, "prompt" in full.checked) == ("ready", True)


@pytest.mark.parametrize(
    ("options", "kind", "code", "param"),
    [
        (
            {"interventions": "no"},
            sdk.BadRequest,
            "intervention_unknown_method",
            "interventions[0]",
        ),
        ({"interventions": "pai:x=1"}, sdk.BadRequest, "intervention_unknown_field", "x"),
        ({"interventions": "pai"}, sdk.BadRequest, "intervention_requires_image", "interventions"),
        ({"model": "other"}, sdk.NotFound, "model_not_found", "model"),
        ({"temperature": 9.0}, sdk.BadRequest, None, "temperature"),
    ],
)
def test_refusals_name_the_place(client, options, kind, code, param):
    with pytest.raises(kind) as caught:
        client.chat("Hi", **options)
    assert param in caught.value.param
    assert code in (None, caught.value.code)
    assert caught.value.request_id


def test_an_unknown_method_and_a_wrong_key(client, running):
    with pytest.raises(sdk.NotFound) as caught:
        client.intervention("no/such")
    assert caught.value.status == 404
    with sdk.Saccade(running.url, "wrong") as stranger:
        assert stranger.ready()
        assert stranger.live()
        with pytest.raises(sdk.Authentication):
            stranger.models()


def test_asynchronous(running):
    async def run():
        async with sdk.AsyncSaccade(running.url, "k") as client:
            replies = await asyncio.gather(*[client.chat("Hi", max_tokens=5) for _ in range(4)])
            async with client.stream_chat("Hi") as stream:
                pieces = [chunk.text async for chunk in stream]
            return [reply.text for reply in replies], pieces, stream.final.text

    texts, pieces, text = asyncio.run(run())
    assert texts == ["Hello"] * 4
    assert "".join(pieces) == text == "Hello, world!"


def test_leaving_a_stream_stops_the_work(client, running):
    running.engine.stall_after = 3  # it would never end by itself
    with client.stream_chat("Hi") as stream:
        next(iter(stream))
        assert running.engine.running
    for _ in range(200):
        if not running.engine.running:
            break
        time.sleep(0.01)
    running.engine.stall_after = None
    assert not running.engine.running
    assert client.chat("Hi").text == "Hello, world!"
