"""Lost interventions are counted where operators look."""

import pytest

from saccade_testing.api.fakes import FakeEngine
from saccade_testing.api.server import MakeServer, wait_for

PASTA = {"method": "pasta", "spans": [[0, 2]], "layers": [1], "alpha": 0.5}


@pytest.mark.parametrize("stream", [False, True])
def test_a_lost_intervention_is_counted_and_logged(
    make_server: MakeServer, caplog: pytest.LogCaptureFixture, stream
):
    server = make_server(FakeEngine(forgets=True))
    services = server.app.state.services
    assert server.http.get("/load").json()["intervention_noops"] == 0
    response = server.chat(interventions=[PASTA], stream=stream)
    assert response.status_code == 200
    wait_for(lambda: services.noops.total())
    assert server.http.get("/load").json()["intervention_noops"] == 1
    assert services.noops == {"pasta": 1}
    assert "pasta acted on nothing" in caplog.text
    services.noops.clear()
