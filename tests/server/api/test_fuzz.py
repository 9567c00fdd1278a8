"""A small share of benchmarks/fuzz.py: random requests and broken files, each time the same."""

import pytest

from saccade_testing.api.fakes import FakeEngine
from saccade_testing.api.server import MakeServer
from saccade_testing.fuzz.campaign import Campaign
from saccade_testing.fuzz.files import READERS, examine
from saccade_testing.fuzz.vectors import VECTORS

ALL = READERS | VECTORS
PROBE = {"messages": [{"role": "user", "content": "Hi"}]}
KEY = {"authorization": "Bearer root"}


def campaign(server):
    server.http.headers.update(KEY)
    return Campaign.of(server.http, KEY, PROBE)


def test_random_requests(make_server: MakeServer, tmp_path):
    server = make_server(admin_keys=("root",), artifacts=tmp_path)
    outcome = campaign(server).run(seed=1, examples=3, phases=("examples", "fuzzing"))
    assert outcome.total > 50
    assert outcome.answered["POST /v1/chat/completions"]
    assert not outcome.problems, outcome.samples


def test_what_is_wrong_is_found(
    make_server: MakeServer, tmp_path, caplog: pytest.LogCaptureFixture
):
    class Broken(FakeEngine):
        broken = False

        def open(self, request, deliver):
            if self.broken:
                raise RuntimeError("on purpose")
            return super().open(request, deliver)

    caplog.set_level("CRITICAL")
    server = make_server(Broken(), admin_keys=("root",), artifacts=tmp_path)
    found = campaign(server)
    del found.told["paths"]["/tokenize"]["post"]["responses"]["200"]
    found.told["paths"]["/live"]["get"]["responses"]["200"]["content"] = {"text/html": {}}
    server.engine.broken = True
    problems = found.run(seed=1, examples=1, phases=("examples", "fuzzing")).problems
    assert problems["POST /v1/chat/completions: 500"]
    assert any("/tokenize -> 200" in problem for problem in problems)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", ALL)
def test_broken_files(name):
    found = examine(name, ALL[name], count=40, seed=1)
    assert found.refused.total() > found.total / 2
    assert not found.problems, "\n".join(found.problems)
