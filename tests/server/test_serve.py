"""The product as its users meet it: ``saccade serve`` in a process, the official client."""

import asyncio
import base64
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from typer.testing import CliRunner

from saccade_client import Saccade
from saccade_interventions.artifacts import write_artifact
from saccade_server.cli import app
from saccade_server.demo import SAMPLES, sample_path

pytestmark = pytest.mark.timeout(300)  # servers start, on whatever machine

COMMAND = [sys.executable, "-c", "from saccade_server.cli import main; main()"]
QUESTION = "Describe the image."
KINDS: tuple[list[dict[str, Any]], ...] = (
    [],
    [{"method": "var", "move_fraction": 0.9, "min_visual_mass": 0.05}],
    [{"method": "pai", "alpha": 1.5}],
    [{"method": "pasta", "highlight": ["Describe"], "layers": [2, 3], "alpha": 0.1}],
    [{"method": "pai", "alpha": 0.5}, {"method": "var", "rho": 0.2}],
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(port: int, *options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(
        [*COMMAND, "serve", "--port", str(port), "--threads", "1", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )


def children(process: subprocess.Popen[str]) -> list[int]:
    """Linux lists a thread's children here; the engine is the only one."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(child) for child in listed.split()]


def wait_until_ready(process: subprocess.Popen[str], url: str) -> None:
    for _ in range(2500):
        assert process.poll() is None, "the server ended"
        try:
            if httpx2.get(url + "/ready").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("the server did not start")


PROFILES = """
[profiles.grounded]
description = "Moves attention from sinks to the image."
interventions = [{ method = "var", move_fraction = 0.9, min_visual_mass = 0.05 }]
"""


@pytest.fixture(scope="module")
def doomed() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another server, for a test that lets it die; it starts while the first one does."""
    port = free_port()
    process = start(port, "--no-self-test")
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, doomed: Any) -> Iterator[str]:
    """The URL of a server with the demo model, every method tried at its start."""
    port = free_port()
    folder = tmp_path_factory.mktemp("server")
    profiles = folder / "profiles.toml"
    profiles.write_text(PROFILES)
    process = start(
        port, "--profiles", str(profiles), "--artifacts", str(folder / "artifacts"),
        "--admin-key", "root",
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(process, url)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, "SIGTERM must end in an orderly exit"
    assert "curl" in output, "the greeting shows a request to paste"


@pytest.fixture
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server + "/v1", api_key="unused", max_retries=0) as made:
        yield made


def messages(sample: str) -> list[Any]:
    data = base64.b64encode(sample_path(sample).read_bytes()).decode()
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    return [{"role": "user", "content": [image, {"type": "text", "text": QUESTION}]}]


def ask(client: openai.OpenAI, sample: str, interventions: Any = None, **more: Any) -> Any:
    extra = {} if interventions is None else {"interventions": interventions}
    return client.chat.completions.create(
        model="saccade-demo",
        messages=messages(sample),
        temperature=0,
        extra_body=extra,
        **more,
    )


def test_a_clear_image_is_described(client: openai.OpenAI) -> None:
    answer = ask(client, "clear-1")
    assert answer.choices[0].finish_reason == "stop"
    assert re.fullmatch(r"There is a .+\.", answer.choices[0].message.content)
    assert answer.usage.prompt_tokens > 64
    assert not getattr(answer, "interventions_applied", None)


def test_streamed_equals_whole_with_and_without_var(client: openai.OpenAI) -> None:
    for interventions in (None, [{"method": "var"}]):
        whole = ask(client, "absent-1", interventions)
        options = {"include_usage": True}
        chunks = list(ask(client, "absent-1", interventions, stream=True, stream_options=options))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_the_receipt_says_what_var_did(client: openai.OpenAI) -> None:
    (entry,) = ask(client, "absent-1", [{"method": "var"}]).interventions_applied
    assert entry["status"] == "applied"
    assert entry["layers"] == [2, 3, 4]
    assert entry["heads"] == 18
    assert entry["rows"]["generated"] > 3
    assert 0 < entry["edits"]["moved"] <= entry["edits"]["evaluated"]


def test_32_mixed_requests_at_once_get_what_each_gets_alone(server: str) -> None:
    """Methods, samples, greedy and seeded draws, all in one batch; texts must be equal."""

    async def main() -> None:
        async with openai.AsyncOpenAI(
            base_url=server + "/v1", api_key="unused", max_retries=0
        ) as client:

            async def one(index: int) -> str:
                answer = await client.chat.completions.create(
                    model="saccade-demo",
                    messages=messages(SAMPLES[index % len(SAMPLES)]),
                    temperature=0.9 if index % 3 == 0 else 0,
                    seed=index,
                    max_tokens=40,
                    extra_body={
                        "interventions": KINDS[index % len(KINDS)],
                        "ignore_eos": index % 2 == 0,
                    },
                )
                applied = getattr(answer, "interventions_applied", None) or []
                assert {entry["status"] for entry in applied} <= {"applied"}
                assert len(applied) == len(KINDS[index % len(KINDS)])
                return str(answer.choices[0].message.content)

            alone = [await one(index) for index in range(32)]
            together = await asyncio.gather(*(one(index) for index in range(32)))
            assert together == alone
            assert len(set(alone)) > 8

    asyncio.run(main())


@pytest.mark.parametrize(
    ("entries", "code", "param"),
    [
        ([{"method": "vra"}], "intervention_unknown_method", "interventions[0].method"),
        ([{"method": "var", "p": 1}], "intervention_unknown_field", "interventions[0].p"),
        (
            [{"method": "pai", "alpha": "x"}],
            "intervention_invalid_params",
            "interventions[0].alpha",
        ),
        (
            [{"method": "pai"}, {"method": "var", "layers": [6]}],
            "intervention_layer_out_of_range",
            "interventions[1].layers[0]",
        ),
        (
            [{"method": "var", "heads": [6]}],
            "intervention_head_out_of_range",
            "interventions[0].heads[0]",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_path(
    client: openai.OpenAI, entries: Any, code: str, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "clear-1", entries)
    assert caught.value.code == code
    assert caught.value.param == param


def test_an_image_method_needs_an_image(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="saccade-demo",
            messages=[{"role": "user", "content": "Hello"}],
            extra_body={"interventions": [{"method": "var"}]},
        )
    assert caught.value.code == "intervention_requires_image"


def test_our_own_client_speaks_to_it(server: str) -> None:
    with Saccade(server) as client:
        listed = {item.id: item for item in client.interventions()}
        assert {"act", "pai", "sgrs", "var", "vhr"} <= set(listed)
        assert [item.reason for item in listed.values() if not item.supported] == []
        answer = client.chat(
            QUESTION, images=sample_path("absent-1"), interventions=["var:move_fraction=0.6"]
        )
        assert answer.interventions_applied[0].status == "applied"
        with client.stream_chat(QUESTION, images=sample_path("clear-1"), temperature=0) as stream:
            text = "".join(chunk.text for chunk in stream)
        assert text == client.chat(QUESTION, images=sample_path("clear-1"), temperature=0).text


def test_a_profile_is_chosen_by_the_name_of_the_model(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [
        "saccade-demo",
        "saccade-demo+grounded",
    ]
    by_name = client.chat.completions.create(
        model="saccade-demo+grounded", messages=messages("absent-1"), temperature=0
    )
    by_hand = ask(
        client, "absent-1", [{"method": "var", "move_fraction": 0.9, "min_visual_mass": 0.05}]
    )
    assert by_name.model == "saccade-demo+grounded"
    assert by_name.intervention_profile == "grounded"  # type: ignore[attr-defined]
    assert by_name.choices[0].message.content == by_hand.choices[0].message.content
    applied = by_name.interventions_applied  # type: ignore[attr-defined]
    assert applied == by_hand.interventions_applied


def test_what_was_uploaded_steers(client: openai.OpenAI, server: str) -> None:
    """Vectors and head lists as calibration makes them, by both clients; plain stays plain."""
    plain = ask(client, "clear-1").choices[0].message.content
    facts = client.models.retrieve("saccade-demo").model_dump()
    with Saccade(server, admin_key="root") as admin:
        values = np.random.default_rng(0).normal(size=(1, facts["hidden_size"]))
        vectors = write_artifact(
            "vectors", facts["fingerprint"], {"vectors": values, "layers": np.array([3])}
        )
        heads = write_artifact(
            "heads", facts["fingerprint"], {"heads": np.array([[2, 0], [3, 1], [4, 5]])}
        )
        steering, act = (admin.put_artifact(data).id for data in (vectors, heads))
        assert {item.id for item in admin.artifacts()} == {steering, act}
        assert admin.get_artifact(act) == heads
    wild = ask(client, "clear-1", [{"method": "steering", "artifact": steering, "coefficient": 50}])
    assert wild.interventions_applied[0]["status"] == "applied"
    assert wild.choices[0].message.content != plain
    (entry,) = ask(client, "clear-1", [{"method": "act", "artifact": act}]).interventions_applied
    assert (entry["layers"], entry["heads"]) == ([2, 3, 4], 3)
    assert entry["status"] in ("applied", "no_effect")
    assert ask(client, "clear-1").choices[0].message.content == plain
    missing = "sha256:" + "0" * 64
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, "clear-1", [{"method": "act", "artifact": missing}])
    assert caught.value.code == "artifact_not_found"
    assert httpx2.get(server + "/load").json()["intervention_noops"] == 0


def test_a_dead_engine_fails_its_requests_and_ends_the_server_with_1(
    doomed: tuple[subprocess.Popen[str], str],
) -> None:
    """The supervisor must see it; requests in flight must not hang."""
    process, url = doomed
    wait_until_ready(process, url)
    with openai.OpenAI(base_url=url + "/v1", api_key="unused", max_retries=0) as client:
        endless = {"interventions": [], "ignore_eos": True}
        stream = client.chat.completions.create(
            model="saccade-demo",
            messages=messages("clear-1"),
            max_tokens=1800,
            stream=True,
            extra_body=endless,
        )
        next(stream)
        os.kill(children(process)[0], signal.SIGKILL)
        with pytest.raises(openai.APIError):
            for _ in stream:
                pass
    assert process.wait(30) == 1


@pytest.mark.parametrize(
    ("loads", "number"),
    [(False, signal.SIGINT), (True, signal.SIGTERM)],
    ids=["imports, SIGINT", "loads, SIGTERM"],
)
def test_a_signal_before_it_serves_ends_it_in_order(loads: bool, number: signal.Signals) -> None:
    """A container's first process must not sit out its grace period."""
    process = start(free_port())
    try:
        while not caught(process.pid, number):
            assert process.poll() is None
            time.sleep(0.05)
        if loads:
            while not children(process):
                assert process.poll() is None
                time.sleep(0.05)
            time.sleep(1)
        process.send_signal(number)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def caught(pid: int, number: signal.Signals) -> bool:
    """True once the process answers a signal otherwise than Python does by itself."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)  # type: ignore[index]
    both = {number, signal.SIGTERM}  # Python answers SIGINT from its start on
    return all(mask >> (each - 1) & 1 for each in both)


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, env=environment, timeout=250
    )


def test_generate_is_the_whole_job_in_one_command() -> None:
    image = str(sample_path("absent-1"))
    done = run_command(
        *("generate", "--image", image, "--prompt", QUESTION),
        *("--intervention", "var:move_fraction=0.6", "--threads", "1"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("There is ")
    assert re.fullmatch(
        r"var applied: \d+ rows, 18 heads of layers 2-4, moved \d+ of \d+\n", done.stderr
    )


def test_generate_refuses_as_the_server_does() -> None:
    done = CliRunner().invoke(app, ["generate", "--prompt", "hi", "--intervention", "varr"])
    assert done.exit_code == 2
    assert 'did you mean "var"' in done.stderr


def test_a_profile_that_cannot_be_served_stops_the_server(tmp_path: Path) -> None:
    path = tmp_path / "profiles.toml"
    path.write_text("[profiles.mine]\ninterventions = [{ method = 'vra' }]\n")
    done = run_command("serve", "--port", str(free_port()), "--profiles", str(path))
    assert done.returncode == 2
    said = f'{path}:1: profile \'mine\', entry 1 (vra): unknown method "vra"; did you mean "var"?'
    assert done.stderr == f"saccade: {said}\n"


def test_demo_and_methods() -> None:
    shown = run_command("demo")
    assert shown.returncode == 0, shown.stderr
    assert "a blue [-square-]{+cross+} and" in shown.stdout
    assert "applied" in shown.stdout
    listed = CliRunner().invoke(app, ["methods"])
    assert all(name in listed.stdout for name in ("var", "pai", "pasta"))
