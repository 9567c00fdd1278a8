"""Servers of tiny chat models, which every framework asks in turn."""

from functools import cache

import pytest

from saccade_testing.frameworks import Framework
from saccade_testing.public.process import serve

MODELS = {
    "qwen3": ("qwen3", "<tool_call>"),
    "thinker": ("qwen3", "<think>", "<tool_call>"),
    "llama3": ("llama3",),
}
"""By name, the style of a model and what its answers open with when nothing holds them."""


@pytest.fixture(scope="session", params=MODELS)
def model(request, chat_folder, tmp_path_factory):
    """The URL of a server, one after the other."""
    folder = chat_folder(*MODELS[request.param])
    options = ("--model", folder, "--served-model-name", "tiny")
    for asker in serve(tmp_path_factory.mktemp("log") / "log", *options):
        yield asker.url


@pytest.fixture(scope="session")
def told():
    """``told(name, url)``: what went wrong in a framework's program, by case; run once."""

    @cache
    def run(name, url):
        framework = Framework(name)
        if framework.missing:
            pytest.skip(framework.missing)
        return framework.run(url)

    return run
