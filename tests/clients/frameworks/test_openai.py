"""OpenAI's own client, whose helpers take pydantic models, unchanged against the server."""

import pytest

from saccade_testing.frameworks import Framework

pytestmark = pytest.mark.timeout(400)  # the first waits for a server and the whole program


@pytest.mark.parametrize("case", Framework("openai").cases)
def test_openai(told, model, case):
    fault = told("openai", model)[case]
    assert fault is None, fault
