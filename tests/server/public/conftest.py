"""What people reported about servers of this kind, asked of a real process that all files share.

Each case keeps the letter and number it was collected under (I images, M messages, P parameters,
S streams, H HTTP, V interventions) and the public reports that it was rewritten from; the inputs
are our own. Expectations follow the documented behaviour of the OpenAI API, else of vLLM.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from saccade_testing.public import text_model
from saccade_testing.public.asking import Asker
from saccade_testing.public.process import serve

ORIGIN = "http://localhost:5173"
"""Of the browser page that the demo's server lets in."""


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    """A client of the embedded demo model, which sees images."""
    yield from serve(tmp_path_factory.mktemp("demo") / "log", "--cors-origin", ORIGIN)


@pytest.fixture(scope="session")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    """A client of a random text model whose template knows tools and thinking."""
    folder = tmp_path_factory.mktemp("thinker")
    text_model.save(folder)
    options = ("--model", str(folder), "--served-model-name", "thinker")
    yield from serve(tmp_path_factory.mktemp("log") / "log", *options)


@pytest.fixture(scope="session")
def origin() -> str:
    return ORIGIN


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(600))  # the first of them waits for a server
