"""Regions of images in requests: pixels of what was sent, whatever was made of it, and refusals."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from saccade_testing.api.bodies import chat_body, data_url, encode, image_messages
from saccade_testing.api.server import Server

# The test's prompts show every image in 2 x 2 tokens.


def picture(width: int, height: int, turn: int = 1) -> str:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(data, "PNG", exif=exif)
    return data_url(data.getvalue())


def look(server: Server, *urls: str, **fields):
    entry = {"method": "look_at", **fields}
    return server.chat(messages=image_messages(*urls), interventions=[entry])


def looked(server: Server, *urls: str, **fields) -> list[int]:
    """Which tokens of the first image belong to the regions, 0 to 3."""
    response = look(server, *urls, **fields)
    assert response.status_code == 200, response.text
    (request,) = server.engine.requests
    server.engine.requests.clear()
    start = request.images[0].start
    return (np.flatnonzero(request.plan.base_tags() == 1) - start).tolist()


def refused(server: Server, code: str, param: str, *urls: str, **fields) -> str:
    response = look(server, *urls, **fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (f"intervention_{code}", f"interventions[0]{param}")
    assert not server.engine.requests
    return error["message"]


def box(*sides: float, image: int = 0) -> dict:
    return {"regions": [{"image": image, "box": list(sides)}]}


@pytest.mark.parametrize(
    ("turn", "size"),
    [(1, (60, 20)), (3, (60, 20)), (6, (20, 60)), (8, (20, 60)), (5, (20, 60))],
)
def test_pixels_are_those_of_the_upright_image(server: Server, turn: int, size) -> None:
    """A file of 60 x 20 pixels, turned by what it says."""
    width, height = size
    url = picture(60, 20, turn)
    assert looked(server, url, **box(0, 0, width, height)) == [0, 1, 2, 3]
    assert looked(server, url, **box(width / 2, 0, width, height / 2)) == [1]
    wide, high = box(0, 0, width + 1, height), box(0, 0, width, height + 1)
    for outside in (wide, high):
        message = refused(server, "target_not_found", ".regions[0].box", url, **outside)
        assert f"{width} x {height} pixels" in message


@pytest.mark.parametrize("turn", [1, 6])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_pixels_are_those_of_the_image_before_it_was_made_smaller(
    server: Server, monkeypatch: pytest.MonkeyPatch, kind: str, turn: int
) -> None:
    seen = []
    honest = server.prompts.prepare_image
    monkeypatch.setattr(server.prompts, "reduction", lambda width, height: 5, raising=False)
    monkeypatch.setattr(
        server.prompts,
        "prepare_image",
        lambda image: seen.append(image.size) or honest(image),
        raising=False,
    )
    exif = Image.Exif()
    exif[0x0112] = turn
    url = data_url(encode(Image.new("RGB", (401, 203), "red"), kind, exif=exif))
    size = (401, 203) if turn == 1 else (203, 401)
    assert looked(server, url, **box(0, 0, *size)) == [0, 1, 2, 3]
    assert looked(server, url, **box(0, size[1] * 0.6, 20, size[1])) == [2]
    assert max(seen[0]) < 110
    refused(server, "target_not_found", ".regions[0].box", url, **box(0, 0, size[0] + 1, 9))


def test_the_second_of_two_images(server: Server) -> None:
    urls = (picture(60, 20), picture(10, 10))
    response = look(server, *urls, **box(0, 0, 5, 5, image=1))
    assert response.status_code == 200
    (request,) = server.engine.requests
    (found,) = np.flatnonzero(request.plan.base_tags() == 1)
    assert found == request.images[1].start


WRONG = [
    ({"box": [0, 0, 61, 20]}, "target_not_found", ".box"),
    ({"box": [20, 0, 10, 20]}, "invalid_params", ".box"),
    ({"box": [20, 5, 30, 5]}, "invalid_params", ".box"),
    ({"box": [0, 0, -1, 5]}, "invalid_params", ".box[2]"),
    ({"image": 1, "box": [0, 0, 5, 5]}, "target_not_found", ".image"),
    ({"image": 10**30, "box": [0, 0, 5, 5]}, "target_not_found", ".image"),
    ({"mask": {"size": [60, 20], "counts": [0, 1200]}}, "target_not_found", ".mask.size"),
    ({"mask": {"size": [40, 120], "counts": [0, 4800]}}, "target_not_found", ".mask.size"),
    ({"mask": {"size": [20, 60], "counts": [0, 1201]}}, "invalid_params", ".mask.counts"),
    ({"mask": {"size": [10**9, 10**9], "counts": [0, 10**18]}}, "invalid_params", ".mask.size[0]"),
    ({"mask": {"size": [20, 60], "counts": "PPYo1"}}, "invalid_params", ".mask.counts"),
    ({"tokens": [0, 5000]}, "target_not_found", ".tokens"),
    ({"text": "zebra"}, "target_not_found", ".text"),
    ({"box": [0, 0, 5, 5], "weight": 1}, "unknown_field", ".weight"),
]


@pytest.mark.parametrize(("region", "code", "path"), WRONG)
def test_a_wrong_region_is_refused_at_its_path(server: Server, region, code, path) -> None:
    good = {"box": [0, 0, 10, 10]}
    url = picture(60, 20)
    refused(server, code, f".regions[1]{path}", url, regions=[good, region])
    assert look(server, url, regions=[good]).status_code == 200


def weighed(server: Server, *urls: str, **fields) -> dict[int, float]:
    """Factors of tokens by the plan, counted from the first image; those that are not 1."""
    response = look(server, *urls, **fields)
    assert response.status_code == 200, response.text
    (request,) = server.engine.requests
    server.engine.requests.clear()
    start = request.images[0].start if request.images else 0
    slots = request.plan.key_weights if request.plan else ()
    found = sum(slot.unpack(request.plan.prompt_length) for slot in slots)
    places = np.flatnonzero(found).tolist()
    return {at - start: pytest.approx(np.exp(found[at]), rel=1e-6) for at in places}


def test_a_map_over_an_image_as_it_was_sent(server: Server) -> None:
    """2 x 2 tokens of a file that says it is turned: rows are those of the upright image."""
    grid = {"weights": [[2, 3], [0.5, 0]]}
    for url in (picture(60, 20), picture(60, 20, turn=6)):
        assert weighed(server, url, regions=[grid]) == {0: 2, 1: 3, 2: 0.5, 3: 0}
    right = {"box": [30, 0, 60, 20], "weights": [[4], [1]]}
    assert weighed(server, picture(60, 20), regions=[right]) == {1: 4}
    assert weighed(server, picture(60, 20), regions=[{"weights": [[1, 1]]}]) == {}
    second = {"image": 1, "weights": [[9]]}
    found = weighed(server, picture(60, 20), picture(9, 9), regions=[second])
    assert list(found.values()) == [9, 9, 9, 9]
    assert min(found) > 3


def test_the_receipt_of_weights(server: Server) -> None:
    response = look(server, picture(60, 20), regions=[{"weights": [[2, 0]]}], layers=[1])
    (entry,) = response.json()["interventions_applied"]
    assert (entry["layers"], entry["heads"]) == ([1], 4)
    response = look(server, picture(60, 20), regions=[{"weights": [[1, 1]]}])
    (entry,) = response.json()["interventions_applied"]
    assert (entry["status"], entry["layers"]) == ("neutral", [])


WRONG_WEIGHTS = [
    ({"weights": [[1, 2], [3]]}, ".weights"),
    ({"weights": [[1, -1]]}, ".weights[0][1]"),
    ({"weights": [[1], [20_000]]}, ".weights[1][0]"),
    ({"weights": [["1"]]}, ".weights[0][0]"),
    ({"weights": [[None]]}, ".weights[0][0]"),
    ({"weights": [[1] * 200]}, ".weights[0]"),
    ({"weights": []}, ".weights"),
    ({"weights": {"grid": [[1]]}}, ".weights"),
    ({"box": [0, 0, 5, 5], "weights": [1, 2]}, ".weights[0]"),
    ({"tokens": [0, 3], "weights": [1, 2]}, ".weights"),
    ({"tokens": [0, 2], "weights": [[1, 2]]}, ".weights[0]"),
    ({"text": "What", "weights": 3}, ".weights"),
]


@pytest.mark.parametrize(("region", "path"), WRONG_WEIGHTS)
def test_wrong_weights_are_refused_at_their_path(server: Server, region, path: str) -> None:
    good = {"weights": [[1, 2]]}
    refused(server, "invalid_params", f".regions[1]{path}", picture(60, 20), regions=[good, region])


def test_weights_of_what_is_not_there(server: Server) -> None:
    refused(server, "requires_image", ".regions[0].image", regions=[{"weights": [[2]]}])
    url, far = picture(60, 20), {"image": 3, "weights": [[2]]}
    refused(server, "target_not_found", ".regions[0].image", url, regions=[far])
    text = {"text": "zebra", "weights": [2, 3]}
    refused(server, "target_not_found", ".regions[0].text", url, regions=[text])


def test_more_weights_than_a_request_holds(server: Server) -> None:
    grid = {"weights": [[0.123456] * 128] * 128}
    response = look(server, picture(60, 20), regions=[grid])
    assert (response.status_code, response.json()["error"]["param"]) == (413, "interventions")
    assert not server.engine.requests


def test_weights_that_act_in_five_ways(server: Server) -> None:
    entries = [
        {"method": "look_at", "regions": [{"tokens": [0, 1], "weights": [2]}], "layers": layers}
        for layers in ([0], [1], [2], [0, 1], [1, 2])
    ]
    assert server.chat(interventions=entries[:4]).status_code == 200
    server.engine.requests.clear()
    response = server.chat(interventions=entries)
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("intervention_conflict", "interventions[4]")
    assert "4 ways" in error["message"]
    assert not server.engine.requests


def test_weights_without_a_prompt(server: Server) -> None:
    """However many tokens a text will have."""
    regions = [{"image": 1, "weights": [[2, 3, 4]]}, {"text": "a b", "weights": [1, 2, 3, 4, 5]}]
    for some in (regions, [{"tokens": [4, 6], "weights": [2, 3]}]):
        body = {"interventions": [{"method": "look_at", "regions": some}]}
        found = server.http.post("/v1/interventions/validate", json=body)
        assert found.status_code == 200, found.text


@pytest.mark.parametrize("weighs", [False, True])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none(server: Server, number: str, weighs: bool) -> None:
    region = {"box": [0, 0, 5, 5], "weights": [[1, 12345]]} if weighs else {"box": [0, 0, 5, 12345]}
    entry = {"method": "look_at", "regions": [region]}
    fields = chat_body(messages=image_messages(picture(60, 20)), interventions=[entry])
    body = json.dumps(fields).replace("12345", number)
    headers = {"content-type": "application/json"}
    response = server.http.post("/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400, response.text
    assert not server.engine.requests


def test_too_many(server: Server) -> None:
    region = {"box": [0, 0, 10, 10]}
    url = picture(60, 20)
    assert look(server, url, regions=[region] * 64).status_code == 200
    server.engine.requests.clear()
    refused(server, "invalid_params", ".regions", url, regions=[region] * 65)
    runs = {"mask": {"size": [1, 34_000], "counts": [1, 1] * 17_000}}
    response = look(server, url, regions=[runs])
    assert (response.status_code, response.json()["error"]["param"]) == (413, "interventions")


def test_a_prompt_without_images(server: Server) -> None:
    refused(server, "requires_image", ".regions[0].image", **box(0, 0, 5, 5))
    response = look(server, regions=[{"text": "What"}])
    assert response.status_code == 200


def test_without_a_prompt_sizes_are_whatever_is_needed(server: Server) -> None:
    def validate(*regions):
        entry = {"method": "look_at", "regions": list(regions)}
        body = {"interventions": [entry]}
        return server.http.post("/v1/interventions/validate", json=body)

    far = {"image": 1, "box": [0, 900, 4000, 3000]}
    mask = {"image": 1, "mask": {"size": [30, 40], "counts": [0, 1200]}}
    found = validate(far, mask, {"text": "x"})
    assert found.status_code == 200, found.text
    assert any("sizes" in line for line in found.json()["depends_on_prompt"])
    other = {"image": 1, "mask": {"size": [40, 30], "counts": [0, 1200]}}
    refusal = validate(far, mask, other)
    assert refusal.status_code == 400
    assert refusal.json()["error"]["param"] == "interventions[0].regions[2].mask.size"


@pytest.mark.parametrize("number", [10**7, 10**30])
def test_no_prompt_has_so_many_images(server: Server, number: int) -> None:
    """A rehearsal makes up no more of them than tokens."""
    for entry in (
        {"method": "look_at", **box(0, 0, 5, 5, image=number)},
        {"method": "pai", "image_index": number},
    ):
        response = server.http.post("/v1/interventions/validate", json={"interventions": [entry]})
        assert response.status_code == 400, response.text
        assert response.json()["error"]["code"] == "intervention_target_not_found"
