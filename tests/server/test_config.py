"""What the command line makes of its options, without starting anything."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer

from saccade_kernels.gpu import device as gpu
from saccade_server.api.settings import ApiSettings
from saccade_server.config import DEMO_NAME, ServerConfig, engine_config, served_name
from saccade_server.demo import SHOWN_SAMPLE, model_path
from saccade_server.engine.config import EngineConfig
from saccade_server.exit_codes import EPILOG, MEANINGS
from saccade_server.serve_options.engine import EngineOptions
from saccade_server.serve_options.group import keys
from saccade_server.serving import greeting


def test_nothing_said_is_the_demo_model_on_what_is_there() -> None:
    config = engine_config()
    assert config.model == str(model_path())
    assert config.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert config.max_num_seqs == 64


def test_limits_are_passed_on_and_checked() -> None:
    assert engine_config("m", max_num_seqs=3, max_model_len=None).max_num_seqs == 3
    with pytest.raises(ValueError, match="--max-batched-tokens must be at least --max-num-seqs"):
        engine_config("m", max_num_seqs=100, max_batched_tokens=10)


def test_what_a_gpu_is_given_is_passed_on() -> None:
    config = engine_config("m", gpu_memory_utilization=0.5, enforce_eager=True, cache_tokens=None)
    assert (config.gpu_memory_utilization, config.enforce_eager) == (0.5, True)
    assert config.cache_tokens is None
    assert engine_config("m", cache_tokens=4096).cache_tokens == 4096
    with pytest.raises(ValueError, match="--gpu-memory-utilization must be"):
        engine_config("m", gpu_memory_utilization=1.5)


@pytest.mark.parametrize("dtype", ["int8", "float64", "half", "", "zeros"])
def test_a_type_that_is_not_served_is_refused_before_anything_loads(dtype: str) -> None:
    with pytest.raises(ValueError, match=r"--dtype .*: choose auto, float32, bfloat16 or float16"):
        engine_config("m", dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA", "mps", ""])
def test_a_device_that_is_not_known_is_refused_before_anything_loads(device: str) -> None:
    with pytest.raises(ValueError, match=r"--device .*: choose auto, cpu, cuda or cuda:N"):
        engine_config("m", device=device)


@pytest.mark.parametrize(
    ("device", "given", "limit"),
    [
        ("cpu", None, 30),
        ("cuda", None, 120),
        ("cuda:1", None, 120),
        ("cuda", 5.0, 5),
        ("cpu", 0, 0),
    ],
)
def test_a_self_test_on_a_gpu_has_time_to_compile(
    device: str, given: float | None, limit: float
) -> None:
    engine = EngineConfig(model="m", device=device)
    settings = ApiSettings(served_model_name="m")
    config = ServerConfig("localhost", 1, engine, settings, self_test_seconds=given)
    assert config.self_test_limit == limit


def test_a_gpu_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(gpu, "present", lambda index: gpu.KNOWN[90])
    assert engine_config("m", device="cuda:1").device == "cuda:1"
    with pytest.raises(ValueError, match="of the 2 GPUs here the last is cuda:1"):
        engine_config("m", device="cuda:2")


def test_a_gpu_that_no_kernel_is_compiled_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(name="Tesla T4", major=7, minor=5, multi_processor_count=40)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: old)
    gpu.present.cache_clear()
    for device, index in (("cuda", 0), ("cuda:1", 1)):
        with pytest.raises(ValueError, match="compute capability") as refused:
            engine_config("m", device=device)
        assert str(refused.value) == (
            f"--device {device}: GPU {index} (Tesla T4) has compute capability 7.5, which no "
            "kernel is compiled for; supported are 8.0, 8.6, 8.9, 9.0, 10.0 and 12.0"
        )


def test_exit_codes_are_documented_where_operators_look() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    for code, meaning in MEANINGS.items():
        assert f"| {code:d} | {meaning} |" in text.replace("`", "")
        assert f"{code:d}  {meaning}" in EPILOG


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="CUDA"):
        engine_config(device="cuda")


@pytest.mark.parametrize(
    ("model", "name", "wanted"),
    [(None, None, DEMO_NAME), ("org/model", None, "org/model"), ("org/model", "mine", "mine")],
)
def test_served_name(model: str | None, name: str | None, wanted: str) -> None:
    assert served_name(model, name) == wanted


def test_batch_invariance_is_passed_on() -> None:
    assert not engine_config("m").batch_invariant
    assert engine_config("m", batch_invariant=True).batch_invariant
    assert not EngineOptions().choices()["batch_invariant"]
    assert EngineOptions(batch_invariant=True).choices()["batch_invariant"]


def test_a_folder_is_served_by_its_last_part(tmp_path: Path) -> None:
    assert served_name(str(tmp_path), None) == tmp_path.name


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
    ],
)
def test_the_greeting_is_ready_to_paste(host: str, url: str) -> None:
    api = ApiSettings(served_model_name=DEMO_NAME)
    text = greeting(ServerConfig(host, 8000, engine_config(), api))
    assert f"curl -s {url}/v1/chat/completions" in text
    body = re.search(r"-d '(.*)'", text)
    assert body is not None
    # What the shell puts in the place of the quoted substitution is base64.
    parsed = json.loads(re.sub(r"'\"\$\(.*?\)\"'", "aGk=", body.group(1)))
    assert parsed["interventions"] == [{"method": "vcd"}]
    assert (f"server/saccade_server/demo/samples/{SHOWN_SAMPLE}.png" in text.split("curl")[0]) == (
        host == "0.0.0.0"
    ), "a container's files are not its host's"


def test_another_model_has_no_sample_to_show() -> None:
    api = ApiSettings(served_model_name="other")
    assert "curl" not in greeting(ServerConfig("127.0.0.1", 8000, engine_config("other"), api))


@pytest.mark.parametrize(
    ("options", "variable", "wanted"),
    [
        (None, None, ()),
        (None, "", ()),
        (None, "one", ("one",)),
        (None, "one,two", ("one", "two")),
        (["three"], "one", ("three",)),
    ],
)
def test_keys_come_from_the_options_or_the_environment(
    options: list[str] | None,
    variable: str | None,
    wanted: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SACCADE_API_KEY", raising=False)
    if variable is not None:
        monkeypatch.setenv("SACCADE_API_KEY", variable)
    assert keys(options, "SACCADE_API_KEY") == wanted


@pytest.mark.parametrize("key", ["", " ", "my secret phrase", "key\n"])
def test_a_key_that_would_open_or_never_open_is_refused(key: str) -> None:
    with pytest.raises(typer.BadParameter, match="a key must not"):
        keys([key], "SACCADE_API_KEY")
