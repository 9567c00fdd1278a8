"""I01 to I22, I40, I43: a file that a person would call a picture is seen as by that person."""

import time

import pytest
from PIL import Image

from saccade_testing.public import asking, pictures

WRONG = "messages[0].content[0].image_url"

SAME = {
    # Reported cases: sgl-project/sglang#33464, ollama/ollama#18418, ggml-org/llama.cpp#20870 and
    # #24196 (EXIF in JPEG and PNG), sgl-project/sglang-omni#2113 (in WebP).
    **{f"I02-png-orientation-{n}": (lambda p, n=n: p.oriented(n), "SCENE") for n in range(1, 9)},
    "I03-webp-orientation-8": (lambda p: p.oriented(8, "WEBP", lossless=True), "SCENE"),
    # vllm-project/vllm#18569, NousResearch/hermes-agent#64548, MMMU-Benchmark/MMMU#17,
    # meerk40t/meerk40t#962: what is transparent lies on white, whatever colour is under it.
    "I04-transparent-png": (lambda p: p.cut_out(), "WHITE"),
    "I04-transparent-webp": (lambda p: p.cut_out("WEBP", lossless=True), "WHITE"),
    "I05-transparent-palette": (lambda p: p.paletted(), "WHITE"),
    "I05-transparent-gif": (lambda p: p.paletted(kind="GIF"), "WHITE"),
    "I05-transparent-colour": (lambda p: p.keyed(), "WHITE"),
    "I06-gray-and-alpha": (lambda p: p.opaque("LA"), "GRAY"),
    "I06-colour-and-alpha": (lambda p: p.opaque("RGBA"), "SCENE"),
    # facebookresearch/spdl#290, pngjs/pngjs#81: 16 bits a channel keep their contrast.
    "I07-deep-gray": (lambda p: p.deep(p.gray()), "GRAY"),
    "I08-deep-colour": (lambda p: p.deep(p.scene()), "SCENE"),
    "I08-deep-colour-and-alpha": (lambda p: p.deep(p.scene().convert("RGBA")), "SCENE"),
    "I08-deep-gray-and-alpha": (lambda p: p.deep(p.scene().convert("LA")), "GRAY"),
    "I10-gray-png": (lambda p: p.encode(p.gray()), "GRAY"),
    "I10-bmp": (lambda p: p.encode(p.scene(), "BMP"), "SCENE"),
    "I10-bmp-top-down": (lambda p: p.bitmap(top_down=True), "SCENE"),
    "I10-bmp-of-32-bits": (lambda p: p.bitmap(32), "SCENE"),
    "I10-palette-bmp": (lambda p: p.encode(p.scene().quantize(8), "BMP"), "SCENE"),
    "I10-lossless-webp": (lambda p: p.encode(p.scene(), "WEBP", lossless=True), "SCENE"),
    "I10-gif": (lambda p: p.encode(p.scene().quantize(8), "GIF"), "SCENE"),
    "I10-interlaced-png": (lambda p: p.interlaced(p.scene()), "SCENE"),
    # What viewers show as well: what is wrong is not in the pixels.
    "I10-png-without-its-end": (lambda p: p.SCENE[:-12], "SCENE"),
    "I10-gif-without-its-end": (lambda p: p.encode(p.scene(), "GIF")[:-1], "SCENE"),
    "I10-orientation-0": (lambda p: p.tagged(0), "SCENE"),
    "I10-orientation-9": (lambda p: p.tagged(9), "SCENE"),
    "I10-no-exif": (lambda p: p.tagged(1, b"nonsense"), "SCENE"),
    "I10-wrong-checksum": (lambda p: p.annotated(p.misread(p.chunk(b"tEXt", b"a\0b"))), "SCENE"),
    "I10-broken-profile": (lambda p: p.annotated(p.chunk(b"iCCP", b"a\0\0nonsense")), "SCENE"),
    # openclaw/openclaw#36662, aws-samples/dify-aws-tool#133, meme-search/meme-search#191: the
    # first frame, as vLLM takes it.
    "I11-animated-gif": (lambda p: p.animated("GIF"), "SCENE"),
    "I11-animated-png": (lambda p: p.animated("PNG"), "SCENE"),
    "I11-animated-webp": (lambda p: p.animated("WEBP", lossless=True), "SCENE"),
    "I11-png-with-a-hidden-default": (lambda p: p.animated("PNG", default_image=True), "SCENE"),
    # vllm-project/vllm#17769: motion photos have a film behind the picture.
    "I21-zeros-behind": (lambda p: p.SCENE + bytes(500), "SCENE"),
    "I21-film-behind": (lambda p: p.SCENE + b"ftypmp42" * 50, "SCENE"),
    # python-pillow/Pillow#8363 and #5610, KatherLab/STAMP#76, libvips/libvips#1903: image
    # generators write their whole workflow into the file.
    "I40-compressed-text": (lambda p: p.annotated(p.compressed_text(b"zTXt", 3_000_000)), "SCENE"),
    "I40-unicode-text": (lambda p: p.annotated(p.compressed_text(b"iTXt", 3_000_000)), "SCENE"),
    "I40-plain-text": (lambda p: p.annotated(p.chunk(b"tEXt", b"a\0" + b"x" * 2_000_000)), "SCENE"),
    "I40-many-texts": (
        lambda p: p.annotated(*[p.compressed_text(b"zTXt", 1_000_000)] * 100),
        "SCENE",
    ),
    "I40-a-bomb-beside": (lambda p: p.annotated(p.compressed_text(b"iTXt", 100_000_000)), "SCENE"),
    "I40-large-profile": (lambda p: p.annotated(p.compressed_text(b"iCCP", 3_000_000)), "SCENE"),
}


@pytest.fixture(scope="module")
def wanted(demo):
    """What the demo model says of the scene, of it on white and of it in grey."""
    plain = {
        "SCENE": pictures.SCENE,
        "WHITE": pictures.encode(pictures.scene(pictures.WHITE)),
        "GRAY": pictures.encode(pictures.gray().convert("RGB")),
    }
    return {name: demo.look(pictures.data_url(data)) for name, data in plain.items()}


def test_the_pictures_that_others_are_compared_with_differ(demo, wanted):
    assert wanted["SCENE"].text == "There is a red circle and a blue square."
    assert wanted["WHITE"].text != wanted["GRAY"].text
    turns = [turn for turn in pictures.STORED.values() if turn is not None]
    turned = [pictures.encode(pictures.scene().transpose(turn)) for turn in turns]
    assert len({*turned, pictures.SCENE}) == 8
    for data in turned:
        other = demo.look(pictures.data_url(data))
        assert other.distance(wanted["SCENE"]) > 1e-4


@pytest.mark.parametrize("name", SAME)
def test_a_lossless_file_is_seen_as_its_pixels(demo, wanted, name):
    make, like = SAME[name]
    assert demo.look(pictures.data_url(make(pictures))).distance(wanted[like]) < 1e-5


BEST = {"quality": 100, "subsampling": 0}
GOOD = {"quality": 95}

LOSSY = {
    # What makes a turned scene another picture shows in the best quality only.
    "I01-jpeg-orientation-6": (lambda p: p.oriented(6, "JPEG", **BEST), 1e-3),
    "I20-two-in-one-orientation-3": (
        lambda p: p.oriented(3, "MPO", save_all=True, append_images=[p.scene()], **BEST),
        1e-3,
    ),
    # ggml-org/llama.cpp#20870: the two pictures of phones
    "I20-two-in-one": (
        lambda p: p.encode(
            p.scene(), "MPO", save_all=True, append_images=[p.scene(p.WHITE)], **BEST
        ),
        1e-3,
    ),
    # haraldk/TwelveMonkeys#147, cshum/imagor#480: CMYK is not inverted
    "I09-cmyk": (lambda p: p.encode(p.scene().convert("CMYK"), "JPEG", **BEST), 0.1),
    "I10-progressive": (lambda p: p.encode(p.scene(), "JPEG", progressive=True, **GOOD), 0.1),
    # cline/cline#8977, NousResearch/hermes-agent#97486: WebP is not dropped
    "I13-webp": (lambda p: p.encode(p.scene(), "WEBP", **GOOD), 0.1),
    "I21-film-behind": (lambda p: p.encode(p.scene(), "JPEG", **BEST) + b"ftypmp42" * 50, 1e-3),
    "I40-history-of-an-editor": (lambda p: p.segments(60), 0.1),
}


@pytest.mark.parametrize("name", LOSSY)
def test_a_lossy_file_is_seen_nearly_as_its_pixels(demo, wanted, name):
    make, within = LOSSY[name]
    data = make(pictures)
    assert demo.look(pictures.data_url(data, "image/jpeg")).distance(wanted["SCENE"]) < within


@pytest.mark.parametrize("kind", ["gray-jpeg", "one-bit-png", "one-bit-bmp"])
def test_a_file_of_few_colours_is_seen_as_its_pixels(demo, kind):
    """I10."""
    bits = pictures.gray().point(lambda value: 255 * (value > 50)).convert("1")
    data = {
        "gray-jpeg": lambda: pictures.encode(pictures.gray(), "JPEG", quality=100),
        "one-bit-png": lambda: pictures.encode(bits),
        "one-bit-bmp": lambda: pictures.encode(bits, "BMP"),
    }[kind]()
    plain = demo.look(pictures.data_url(pictures.decode(data)))
    assert demo.look(pictures.data_url(data)).distance(plain) < 1e-5


SIZES = [(1, 1), (60, 1), (1, 60), (2, 1), (500, 19), (32, 3), (3, 32)]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_a_picture_of_one_colour_has_that_colour_at_any_size(demo, size):
    """I14, I15, I16: one pixel is the usual smoke test of clients. From vllm-project/vllm#8954,
    #9141 and #13655, lmstudio-ai/lmstudio-bug-tracker#1755, PaddlePaddle/PaddleOCR#17378."""
    large, small = (
        demo.look(pictures.data_url(pictures.encode(Image.new("RGB", sides, "red"))))
        for sides in ((64, 64), size)
    )
    assert small.distance(large) < 1e-5


BROKEN = {
    "I17-jpeg": lambda p: p.encode(Image.effect_noise((64, 64), 90), "JPEG", quality=95)[:-128],
    "I18-png": lambda p: p.SCENE[:100],
    "I18-png-header": lambda p: p.SCENE[:20],
    "I18-gif": lambda p: p.encode(p.scene(), "GIF")[:-60],
    "I18-webp": lambda p: p.encode(p.scene(), "WEBP", lossless=True)[:-20],
    "I18-bmp": lambda p: p.encode(p.scene(), "BMP")[:-4000],
    "I18-animation": lambda p: p.animated("GIF")[:40],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_cut_short_is_refused_at_its_place(demo, name):
    """From vllm-project/vllm#38253, vllm-project/vllm-ascend#10426: half a picture must not be
    taken for the whole."""
    part = asking.image(pictures.data_url(BROKEN[name](pictures)))
    answer = demo.chat(asking.user(part, asking.text("x")))
    asking.refused(answer, WRONG, "invalid_image", says="damaged or incomplete")


OTHER_FORMATS = {
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0heicmif1",
    "avif": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
    "tiff": b"II*\0\x08\0\0\0",
    "jpeg-xl": b"\xff\x0a\xfa\x7f",
    "pdf": b"%PDF-1.7\n",
    "html": b"<!doctype html><html></html>",
    "text": b"not an image",
}


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_another_format_is_refused_with_those_that_work(demo, name):
    """I19. From giselles-ai/giselle#2937."""
    part = asking.image(pictures.data_url(OTHER_FORMATS[name]))
    answer = demo.chat(asking.user(part, asking.text("x")))
    message = asking.refused(answer, WRONG, "unsupported_image_format")
    assert all(kind in message for kind in ("PNG", "JPEG", "WebP", "GIF", "BMP"))


def test_a_large_photo_held_sideways_is_answered_in_time(demo, wanted):
    """I43. From sgl-project/sglang#33464. Eight megapixels, of which the model sees 4096."""
    photo = pictures.data_url(pictures.oriented(6, "JPEG", size=3264, quality=80))
    began = time.monotonic()
    assert demo.look(photo).text == wanted["SCENE"].text
    assert time.monotonic() - began < 30
