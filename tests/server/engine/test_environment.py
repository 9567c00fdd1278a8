"""Which variables an engine's process is started with."""

from pathlib import Path

import pytest

from saccade_server.engine.environment import engine_environment

SECRETS = [
    "SACCADE_API_KEY", "SACCADE_ADMIN_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY",
    "GITHUB_TOKEN", "PGPASSWORD_OLD_PASSWORD", "DB_PASSWORD", "GOOGLE_APPLICATION_CREDENTIALS",
    "azure_client_secret", "API_KEYS", "OPENAI_APIKEY", "PGPASSWORD", "GITHUB_PAT", "HTTP_AUTH",
]  # fmt: skip
NEEDED = ["PATH", "CUDA_VISIBLE_DEVICES", "TOKENIZERS_PARALLELISM", "HF_HOME", "KEYBOARD", "OMP"]


@pytest.mark.parametrize("name", [*SECRETS, "HF_TOKEN", "SACCADE_HOST"])
def test_secrets_stay_behind(name: str, tmp_path: Path) -> None:
    assert engine_environment(str(tmp_path), {name: "s"}) == {}


@pytest.mark.parametrize("name", NEEDED)
def test_the_rest_comes_along(name: str, tmp_path: Path) -> None:
    assert engine_environment(str(tmp_path), {name: "s"}) == {name: "s"}


def test_a_model_of_the_hub_is_fetched_with_the_hubs_token() -> None:
    given = dict.fromkeys([*SECRETS, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"], "s")
    assert set(engine_environment("owner/model", given)) == {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}
