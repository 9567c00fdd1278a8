"""A whole server's log and spans: both processes, from its start to its end."""

import json
import signal
from pathlib import Path
from typing import Any

import httpx2
import pytest

from saccade_testing.api.collector import Collector, attributes
from saccade_testing.launch import Served

pytestmark = pytest.mark.long

HIDDEN = "xylophone"
KEY = "key-of-a-" + HIDDEN
CHAT = "/v1/chat/completions"


def ask(served: Served, path: str = CHAT, **body: Any) -> httpx2.Response:
    headers = {"authorization": f"Bearer {KEY}", "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
    return httpx2.post(served.url + path, json=body, headers=headers, timeout=60)


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_server_says_what_it_does_and_nothing_of_what_it_is_sent(
    tmp_path: Path, form: str
) -> None:
    collector = Collector()
    log = tmp_path / "log"
    options = ["--no-self-test", "--log-format", form, "--log-level", "debug", "--api-key", KEY]
    served = Served(log, *options, "--otlp-traces-endpoint", collector.url)
    try:
        served.wait_until_ready()
        said = [{"role": "user", "content": f"a {HIDDEN}\nof\x1b[2Jtwo lines"}]
        ask(
            served, messages=said, max_tokens=4, ignore_eos=True, interventions=[{"method": "dola"}]
        )
        ask(served, messages=said, stream=True, max_tokens=4, ignore_eos=True)
        ask(served, messages=said, model=HIDDEN)
        ask(served, messages=[{"role": HIDDEN, "content": HIDDEN}])
        ask(served, "/v1/completions", prompt=HIDDEN, max_tokens=2, stop=[HIDDEN])
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(60) == 0
    finally:
        served.end()
        collector.close()
    written, printed = log.read_text(), served.output.read_text()
    assert HIDDEN not in written + printed + str(collector.spans)
    assert "\x1b" not in written
    names = {span.name for span in collector.spans}
    assert {f"POST {CHAT}", "prepare", "queue", "prompt", "decode"} <= names
    (whole,) = [
        said
        for said in map(attributes, collector.named(f"POST {CHAT}"))
        if said.get("saccade.interventions") == ["dola"]
    ]
    assert whole["gen_ai.usage.output_tokens"] == 4
    assert whole["gen_ai.response.time_to_first_chunk"] > 0
    if form == "text":
        assert "Serving saccade-demo at " in printed
        firsts = [line for line in written.splitlines() if not line.startswith("    ")]
        assert all(line.startswith("20") for line in firsts), written
        return
    assert printed == ""
    entries = [json.loads(line) for line in written.splitlines()]
    assert {entry["process"] for entry in entries} == {"api", "engine"}
    assert [entry["message"] for entry in entries].count("serving") == 1
    lines = [each for each in entries if each["message"] == f"POST {CHAT} 200"]
    assert [each["completion_tokens"] for each in lines] == [4, 4]
    assert {each["trace_id"] for each in lines} == {"ab" * 16}
    assert lines[0]["interventions"] == ["dola"]
    assert all(each["decode_seconds"] > 0 for each in lines)
