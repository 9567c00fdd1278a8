"""What ``saccade cluster`` takes, and what Ray is told of it."""

from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from saccade_server.cli import app
from saccade_server.cluster.command import parsed

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


def test_it_has_every_option_of_serve_and_variables_of_its_own() -> None:
    serve, cluster = (
        {each.name: each for each in COMMANDS[name].params} for name in ("serve", "cluster")
    )
    assert serve.keys() < cluster.keys()
    assert {name: serve[name].envvar for name in serve} == {
        name: cluster[name].envvar for name in serve
    }
    own = {cluster[name].envvar for name in cluster.keys() - serve.keys()}
    assert all(str(name).startswith("SACCADE_CLUSTER_") for name in own)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--replicas", "3", "--max-replicas", "2"], "--max-replicas 2 is less than --replicas 3"),
        (["--target-requests", "8"], "give --max-replicas"),
        (["--replicas", "2", "--admin-key", "k"], "give --artifacts"),
        (["--max-replicas", "2", "--admin-key", "k"], "give --artifacts"),
        (["--no-such-option"], "No such option"),
        (["no/such/model"], "no such"),
    ],
)
def test_what_contradicts_itself_is_refused(line: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parsed(line)


def test_paths_mean_the_same_on_every_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    profiles = Path("profiles.toml")
    profiles.write_text('[profiles.p]\ninterventions = [{ method = "var" }]\n')
    line = ["--profiles", "profiles.toml", "--artifacts", "a", "--admin-key", "k"]
    cluster, choices = parsed([*line, "--replicas", "2"])
    assert cluster.most == 2
    assert choices.server["profiles"] == tmp_path / profiles
    assert choices.settings["artifacts"] == tmp_path / "a"


def test_ray_is_told_of_replicas_room_and_times() -> None:
    pytest.importorskip("ray.serve", reason="needs the extra ray")
    from saccade_server.cluster.application import application, gpus, http_options

    cluster, choices = parsed(
        ["--replicas", "2", "--max-replicas", "5", "--max-num-seqs", "7", "--max-requests", "9"]
    )
    deployment: Any = application(cluster, choices, gpus=1)._bound_deployment
    config = deployment._deployment_config
    assert deployment.ray_actor_options["num_gpus"] == 1
    scale = config.autoscaling_config
    assert (scale.min_replicas, scale.max_replicas, scale.target_ongoing_requests) == (2, 5, 7)
    assert config.max_ongoing_requests > 9  # the replica itself says that it is full
    assert config.request_router_config.request_router_kwargs["room"] == 7
    assert config.graceful_shutdown_timeout_s > choices.settings["shutdown_timeout"]
    assert http_options(choices)["request_timeout_s"] > choices.settings["request_timeout"]
    with pytest.raises(ValueError, match="its own GPU"):
        gpus(parsed(["--device", "cuda:1"])[1])
    assert gpus(parsed(["--device", "cpu"])[1]) == 0
    assert gpus(parsed(["--device", "cuda"])[1]) == 1


def test_rays_own_commands_find_the_application() -> None:
    pytest.importorskip("ray.serve", reason="needs the extra ray")
    from ray._common.utils import import_attr
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as call

    build = import_attr("saccade_server.cluster.application:build")
    options = "--replicas 4 --max-num-seqs 32 --device cpu"
    deployment: Any = call(build, {"options": options})._bound_deployment
    assert deployment.num_replicas == 4
    assert deployment.ray_actor_options["num_gpus"] == 0
    with pytest.raises(ValueError, match="No such option"):
        call(build, {"options": "--nope"})
    with pytest.raises(ValueError, match="opts"):
        call(build, {"opts": ""})
