"""Bad input in the shell: one sentence that says what to do, before torch is imported.

Commands run in this process; one test counts on a process of its own that torch is not there.
"""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from saccade_server import __version__
from saccade_server.cli import app
from saccade_server.demo import sample_path

DIGEST = "sha256:" + "0" * 64


@pytest.fixture(autouse=True)
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way to a model is closed."""

    def load(*parts: Any, **more: Any) -> Any:
        raise AssertionError("it went on to load a model")

    monkeypatch.setattr("saccade_server.config.engine_config", load)
    monkeypatch.setattr("saccade_server.serving.serve", load)
    monkeypatch.setattr("saccade_server.serve_command._answer_signals", lambda handler: None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What commands are run in; names of files in it are relative."""
    monkeypatch.chdir(tmp_path)
    image = sample_path("absent-1").read_bytes()
    (tmp_path / "scene.png").write_bytes(image)
    (tmp_path / "cut.png").write_bytes(image[:500])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "page.svg").write_text("<svg></svg>")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / f"{'1' * 64}.safetensors").write_bytes(b"not one")
    (tmp_path / "models" / "smollm2").mkdir(parents=True)
    (tmp_path / "bad.toml").write_text("x = [")
    profiles = "[profiles.a]\ninterventions = []\n\n[profiles.mine]\n"
    (tmp_path / "profiles.toml").write_text(profiles + 'interventions = [{ method = "vra" }]\n')
    settings = "[[settings]]\nname = 'mine'\ninterventions = [{ method = 'pai' }]\n"
    (tmp_path / "settings.toml").write_text(settings)
    return tmp_path


def refused(*arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and the one line that was said."""
    done = CliRunner().invoke(app, list(arguments), env=environment)
    assert not isinstance(done.exception, AssertionError), done.exception
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("saccade: ")
    assert not re.search(r"interventions\[|messages\[|Traceback|Errno|Input should", lines[0])
    return done.exit_code, lines[0].removeprefix("saccade: ")


ASK = ("generate", "--prompt", "Hi")
SHOW = (*ASK, "--image", "scene.png")
OF_PROMPTS = ("act", "heads", "vectors", "head-vectors", "head-means")

SAID = [
    (("serv",), 'unknown command "serv"; did you mean "serve"?'),
    (("eval", "scene"), 'unknown command "scene"; did you mean "scenes"?'),
    (("calibrate", "vector"), 'unknown command "vector"; did you mean "vectors"?'),
    (("--verson",), "there is no option --verson; did you mean --version?"),
    (("serve", "--prot", "1"), "serve has no option --prot; did you mean --port?"),
    (("serve", "--zzz"), "serve has no option --zzz; saccade serve --help says what there is"),
    (("generate",), "--prompt is missing; saccade generate --help says what there is"),
    (("calibrate", "heads"), "PROMPTS is missing"),
    (("calibrate", "act", "no.jsonl"), "PROMPTS: there is no file no.jsonl; check the name"),
    (("calibrate", "act", "bad.toml", "--entry", "atc"), 'did you mean "act"?'),
    (("calibrate", "act", "bad.toml", "--entry", "act:bta=1"), 'did you mean "beta"?'),
    (("calibrate", "act", "bad.toml", "--layers", "2-x"), "'2-x' is no layer and no range"),
    (("calibrate", "act", "bad.toml", "--entry", "act:beta=9"), "--entry: beta must be at most 1"),
    (("calibrate", "act", "bad.toml", "--layers", "0-99999999999"), "is no layer and no range"),
    (("calibrate", "vectors", "bad.toml"), "bad.toml:1: not JSON"),
    (("calibrate", "vectors", "bad.toml", "--direction", "pac"), "choose mean or pca"),
    (("calibrate", "sinks", "--out", "store"), "--out: store is a folder; name a file in it"),
    (("calibrate", "sinks", "--out", "scene.png/x"), "scene.png is a file, not a folder"),
    (("demo", "x"), "got unexpected extra argument(s) (x); saccade demo --help says"),
    (("serve", "--port", "0"), '--port must be at least 1; got "0"'),
    (("serve", "--log-level", "warn"), 'unknown level "warn"; did you mean "warning"?'),
    (("serve", "--device", "gpu"), "choose auto, cpu, cuda or cuda:N"),
    (("serve", "--dtype", "fp16"), "choose auto, float32, bfloat16 or float16"),
    (("serve", "--profiles", "profile.toml"), "did you mean profiles.toml?"),
    (("serve", "--profiles", "store"), "store is a folder; name a file in it"),
    (("serve", "--profiles", "bad.toml"), "bad.toml: is not TOML"),
    (
        ("serve", "--profiles", "profiles.toml"),
        "profiles.toml:4: profile 'mine', entry 1 (vra): unknown method \"vra\"; "
        'did you mean "var"?',
    ),
    (
        ("serve", "--artifacts", "scene.png"),
        "--artifacts: scene.png is a file, not a folder; name another folder",
    ),
    (("serve", "--api-key", ""), "a key must not be empty or hold blanks"),
    (("serve", "--host", "ü.x"), "--host ü.x: there is no address of this name"),
    (("serve", "--host", "1.2.3.4.5"), "--host 1.2.3.4.5: there is no address of this name"),
    (("serve", "one", "--model", "two"), "two models are named, one and --model two; name one"),
    (("serve", ""), "--model is empty; name a folder or a model on the hub"),
    (
        (*ASK, "--image", "sceen.png"),
        "there is no file sceen.png; did you mean scene.png?",
    ),
    ((*ASK, "--image", "no/such.png"), "there is no folder no either; check the path"),
    ((*ASK, "--image", "store"), "--image: store is a folder"),
    ((*ASK, "--image", "/dev/zero"), "--image: /dev/zero is a pipe or a device; write what it"),
    ((*ASK, "--image", "text.png"), "--image text.png: is in no format that is read here; give"),
    ((*ASK, "--image", "page.svg"), "--image page.svg: is an SVG or XML text; give a PNG"),
    ((*ASK, "--image", "cut.png"), "--image cut.png: is damaged or incomplete"),
    ((*ASK, "--temperature", "5"), "--temperature must be at most 2"),
    ((*ASK, "--seed", str(2**63)), f"--seed must be at most {2**63 - 1}"),
    ((*SHOW, "--intervention", "vra"), 'unknown method "vra"; did you mean "var"?'),
    (
        (*SHOW, "--intervention", "var:move_fraction=2"),
        "--intervention var: move_fraction must be at most 1; got 2",
    ),
    (
        (*SHOW, "--intervention", "pai", "--intervention", "var:move_fractoin=1"),
        '--intervention var: unknown field of var "move_fractoin"; did you mean "move_fraction"?',
    ),
    ((*SHOW, "--intervention", "var:layers=2"), "layers must be a list; got 2; a list of one has"),
    ((*SHOW, "--intervention", "var:x"), "'x' in 'var:x' is not field=value"),
    ((*ASK, "--intervention", "var"), "--intervention var needs an image; give an image with"),
    (
        (*ASK, "--intervention", f"steering:artifact={DIGEST}"),
        "--intervention steering: name the folder that holds the artifact with --artifacts",
    ),
    (
        (*ASK, "--artifacts", "store", "--intervention", f"steering:artifact={DIGEST}"),
        f"--intervention steering: --artifacts store: it has no {'0' * 64}.safetensors",
    ),
    (
        (*ASK, "--artifacts", "stroe", "--intervention", f"steering:artifact={DIGEST}"),
        "--artifacts stroe: there is no such folder",
    ),
    (
        (*ASK, "--artifacts", "store", "--intervention", f"act:artifact=sha256:{'1' * 64}"),
        f"store/{'1' * 64}.safetensors",
    ),
    (("methods", "vra"), 'unknown method "vra"; did you mean "var"?'),
    (("eval", "scenes", "--method", "vra"), '--method: unknown method "vra"; did you mean "var"?'),
    (
        ("eval", "scenes", "--settings", "settings.toml", "--method", "mien"),
        '--method: unknown setting of settings.toml "mien"; did you mean "mine"?',
    ),
    (("eval", "scenes", "--settings", "setings.toml"), "did you mean settings.toml?"),
    (("eval", "scenes", "--seeds", "1,1"), "--seeds: a seed occurs twice"),
    (("eval", "scenes", "--url", "http://127.0.0.1:9"), "nobody answers at http://127.0.0.1:9"),
    (("eval", "scenes", "--out", "scene.png/x"), "so scene.png/x cannot be; name another folder"),
    (("eval", "export-scenes", "--out", "x", "--split", "cleer"), 'did you mean "clear"?'),
]


@pytest.mark.parametrize(("arguments", "words"), SAID, ids=[" ".join(a)[:60] for a, _ in SAID])
def test_one_sentence_says_what_to_do(folder: Path, arguments: Any, words: str) -> None:
    code, said = refused(*arguments)
    assert code == 2
    assert words in said


@pytest.mark.parametrize(
    "command",
    [
        ("serve",),
        ("serve", "--model"),
        (*ASK, "--model"),
        ("methods", "--check", "--model"),
        ("eval", "scenes", "--model"),
        *(("calibrate", kind, "bad.toml", "--model") for kind in OF_PROMPTS),
        ("calibrate", "sinks", "--model"),
    ],
)
@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("./models/smolm2", "there is no such folder; did you mean models/smollm2?"),
        ("models/smollm2", "the folder is empty; finish the download"),
        ("models", "has no config.json"),
        ("a model", "no name on the Hugging Face hub, which is OWNER/NAME"),
    ],
)
def test_a_model_that_is_none_has_a_code_of_its_own(
    folder: Path, command: tuple[str, ...], model: str, words: str
) -> None:
    code, said = refused(*command, model)
    assert code == 3
    assert said.startswith(model)
    assert words in said


def test_a_variable_is_named_where_the_value_is_its_own() -> None:
    assert refused("serve", SACCADE_PORT="0") == (2, 'SACCADE_PORT must be at least 1; got "0"')


def test_a_busy_port(folder: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, said = refused("serve", "--port", str(port))
    assert code == 2
    assert said == f"port {port} of 127.0.0.1 is in use: stop what listens there, or choose --port"


def test_what_a_request_would_be_refused_for_names_options(folder: Path) -> None:
    """The model's own refusals come with a path into JSON; the shell has no JSON."""
    from saccade_server.shell.entries import in_options

    entries = [{"method": "pai"}, {"method": "var"}]
    images = [Path("a.png"), Path("b.png")]
    cases = {
        ("there is no layer 9", "interventions[1].layers[0]"): "--intervention var: layers: there",
        ("alpha must be more", "interventions[0].alpha"): "--intervention pai: alpha must be more",
        ("pai (interventions[0]) divides", "interventions[1]"): "--intervention var: pai divides",
        ("at most 16", "interventions"): "--intervention: at most 16",
        ("It is damaged.", "messages[0].content[1].image_url"): "--image b.png: It is damaged.",
        ("The prompt is long.", "messages"): "--prompt: The prompt is long.",
        ("max_tokens is too large", "max_tokens"): "--max-tokens: is too large",
        ("No room.", None): "No room.",
    }
    for (message, param), words in cases.items():
        assert in_options(message, param, entries, images).startswith(words)


def test_the_version() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"saccade {__version__}\n")


@pytest.mark.parametrize("command", [(), ("eval",), ("calibrate",)])
def test_a_group_alone_shows_its_commands(command: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, list(command))
    assert done.exit_code == 2
    assert "Commands:" in done.stderr


def commands() -> Iterator[tuple[str, ...]]:
    yield from ((), ("serve",), ("generate",), ("demo",), ("methods",))
    yield from (("eval",), ("eval", "scenes"), ("eval", "export-scenes"), ("calibrate",))
    yield from (("calibrate", kind) for kind in (*OF_PROMPTS, "sinks"))


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_help_fits_80_columns_and_cuts_nothing_off(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = CliRunner().invoke(app, [*command, "--help"])
    assert done.exit_code == 0
    assert not [line for line in done.stdout.splitlines() if len(line) > 80 or "…" in line]
    assert "..." not in done.stdout.replace("[ARGS]...", "")


def test_torch_is_not_imported_for_what_can_be_refused_without_it(folder: Path) -> None:
    script = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from saccade_server.cli import app\n"
        "for line in sys.argv[1:]:\n"
        "    done = CliRunner().invoke(app, line.split())\n"
        "    print(done.exit_code, 'torch' in sys.modules, line)\n"
    )
    lines = [
        "--help",
        "methods",
        "methods vra",
        "serve --port 0",
        "serve --profiles profiles.toml",
        "serve --host 1.2.3.4.5",
        "serve --expect-deployment nowhere.json",
        "serve ./nowhere",
        "generate --prompt hi --image text.png",
        "generate --prompt hi --intervention vra",
        f"generate --prompt hi --artifacts store --intervention steering:artifact={DIGEST}",
        "eval scenes --method vra",
        "calibrate vectors bad.toml",
        "calibrate act bad.toml --entry act:beta=9",
    ]
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", script, *lines],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    shown = [line.split(" ", 2) for line in done.stdout.splitlines()]
    assert [(torch, line) for _, torch, line in shown] == [("False", line) for line in lines]
    assert [code for code, *_ in shown] == [*"00222223222222"]
