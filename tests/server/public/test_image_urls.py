"""I22 to I38: data URLs as libraries and browsers write them, and what is not one."""

import base64
from urllib.parse import quote

import pytest

from saccade_testing.public import asking, pictures

WRONG = "messages[0].content[0].image_url"
RED = "There is a red circle and a blue square."


def spelled(head, tail=None):
    """A data URL with another head, or with its text changed."""
    return lambda data: head + (tail or (lambda text: text))(base64.b64encode(data).decode())


SPELLINGS = {
    # agentscope-ai/QwenPaw#3313, ogkalu2/comic-translate#399: the bytes decide, not the name.
    "I22-jpg": spelled("data:image/jpg;base64,"),
    "I22-another-format": spelled("data:image/webp;base64,"),
    "I22-upper-case-type": spelled("data:IMAGE/PNG;base64,"),
    "I22-no-type": spelled("data:;base64,"),
    "I22-octets": spelled("data:application/octet-stream;base64,"),
    "I22-octets-of-s3": spelled("data:binary/octet-stream;base64,"),
    "I22-star": spelled("data:image/*;base64,"),
    "I23-upper-case": spelled("DATA:image/png;BASE64,"),  # MoonshotAI/kimi-code#1536
    "I24-charset": spelled("data:image/png;charset=utf-8;base64,"),  # QwenLM/Qwen3-VL#202
    "I24-spaced": spelled("data:image/png; charset=utf-8; base64,"),
    # rjsf-team/react-jsonschema-form#861 and #967: form libraries keep the file's name.
    "I25-name": spelled("data:image/png;name=13.png;base64,"),
    "I25-underscore": spelled("data:image/png;name=my_photo.png;base64,"),
    "I25-encoded": spelled("data:image/png;name=my%20photo%20(1).png;base64,"),
    "I25-quoted": spelled('data:image/png;filename="my photo, 2.png";base64,'),
    "I25-long-name": spelled(f"data:image/png;name={'a' * 200}.png;base64,"),
    # omnimind-ai/OmniBot#360, validatorjs/validator.js#1424, tinymce/tinymce#7093
    "I26-lines": lambda data: "data:image/png;base64," + base64.encodebytes(data).decode(),
    "I26-crlf": lambda data: (
        "data:image/png;base64," + base64.encodebytes(data).decode().replace("\n", "\r\n")
    ),
    "I26-space-first": spelled("data:image/png;base64, "),
    "I26-line-last": spelled("data:image/png;base64,", lambda text: text + "\n"),
    "I26-around": spelled(" data:image/png;base64,", lambda text: text + " "),
    # matatonic/openedai-vision#4, runpod-workers/worker-comfyui#126
    "I28-no-padding": spelled("data:image/png;base64,", lambda text: text.rstrip("=")),
    # blueimp/JavaScript-Canvas-to-Blob#6: RFC 2397
    "I29-percent": spelled("data:image/png;base64,", lambda text: quote(text, safe="")),
    "I29-percent-lower": spelled(
        "data:image/png;base64,", lambda text: text.replace("+", "%2b").replace("=", "%3d")
    ),
    "I29-url-alphabet": spelled(
        "data:image/png;base64,", lambda text: text.replace("+", "-").replace("/", "_")
    ),
}


@pytest.fixture(scope="module")
def ragged():
    """The scene, with bytes behind it that need padding and every letter of the alphabet."""
    tail = bytes(range(256)) + b"\xfb\xff\xfe" * 3
    return pictures.SCENE + tail + b"\0" * ((1 - len(pictures.SCENE) - len(tail)) % 3)


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_data_url_is_read_however_it_is_spelled(demo, ragged, name):
    url = SPELLINGS[name](ragged)
    assert base64.b64encode(ragged).decode().endswith("==")
    assert demo.look(url).distance(demo.look(pictures.URL)) < 1e-5


UNREADABLE = {
    # Alibaba-NLP/OmniSearch#3, promptfoo/promptfoo#5725, vllm-project/vllm#11781
    "I30-bare": (lambda p: base64.b64encode(p.SCENE).decode(), "data:"),
    "I31-empty": (lambda p: "data:image/png;base64,", "empty"),  # anomalyco/opencode#23983
    "I31-no-data": (lambda p: "data:image/png;base64", "data:image/png;base64,"),
    "I31-not-base64": (lambda p: "data:image/png;base64,?!", "base64"),
    "I31-undefined": (lambda p: "data:image/png;base64,undefined", ""),
    "I31-one-letter-short": (lambda p: "data:image/png;base64,AAAAA", "base64"),
    # dashjoin/json-schema-form#164
    "I32-file": (lambda p: "file:///etc/passwd", "data:"),
    "I32-blank": (lambda p: "", ""),
    "I32-path": (lambda p: "/tmp/x.png", "data:"),
    "I32-windows-path": (lambda p: "C:\\x.png", "data:"),
    "I32-browser-blob": (lambda p: "blob:http://localhost/3f1c", "data:"),
    # vllm-project/vllm#16918, posit-dev/chatlas#20
    "I33-http": (lambda p: "https://images.example/x.png", "data:"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_picture_is_refused_with_how_to_send_one(demo, name):
    make, says = UNREADABLE[name]
    answer = demo.chat(asking.user(asking.image(make(pictures)), asking.text("x")))
    asking.refused(answer, WRONG, says=says)


def test_an_address_that_may_not_be_fetched_names_the_option_that_allows_it(demo):
    """I33."""
    answer = demo.chat(asking.user(asking.image("https://images.example/x.png"), asking.text("x")))
    asking.refused(answer, WRONG, "image_url_not_allowed", says="--allow-image-urls")


@pytest.mark.parametrize("detail", ["low", "high", "auto", None])
def test_the_wanted_detail_is_taken(demo, detail):
    """I34. From posit-dev/chatlas#20, vllm-project/vllm#5693."""
    part = asking.image(pictures.URL, detail=detail)
    assert demo.see(asking.user(part, asking.text(asking.QUESTION))).text == RED


def test_the_address_as_a_plain_text_is_taken(demo):
    """I35. From vllm-project/vllm#16990, langchain-ai/langchain#22460."""
    part = {"type": "image_url", "image_url": pictures.URL}
    assert demo.see(asking.user(part, asking.text(asking.QUESTION))).text == RED


def test_sixteen_images_are_taken_and_seventeen_refused(demo):
    """I36. From Visual-Agent/DeepEyes#90."""
    one, most = (
        asking.answered(
            demo.chat(
                asking.user(*[asking.image(pictures.URL)] * count, asking.text(asking.QUESTION)),
                max_tokens=1,
            )
        )["usage"]["prompt_tokens"]
        for count in (1, 16)
    )
    assert most - one >= 15 * 64, "each of them is seen"
    answer = demo.chat(asking.user(*[asking.image(pictures.URL)] * 17, asking.text("x")))
    asking.refused(answer, "messages", "too_many_images", says="16")


def test_an_image_is_seen_before_and_behind_the_text(demo):
    """I37. From vllm-project/vllm#5693."""
    image, text = asking.image(pictures.URL), asking.text(asking.QUESTION)
    assert demo.see(asking.user(image, text)).text == RED
    assert demo.see(asking.user(text, image)).text == RED


def test_an_image_is_never_dropped(demo):
    """I38. From raullenchai/Rapid-MLX#457, sgl-project/sglang#21762."""
    with_image = demo.look(pictures.URL)
    assert with_image.prompt_tokens - demo.see(asking.QUESTION).prompt_tokens >= 64
