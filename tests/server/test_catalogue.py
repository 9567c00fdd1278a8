"""The table of ``saccade methods``."""

import asyncio
import io
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from saccade_interventions.registry import Registry
from saccade_server.catalogue import catalogue, on_the_model
from saccade_server.config import engine_config


def shown(listing: Sequence[dict[str, Any]]) -> str:
    file = io.StringIO()
    Console(file=file, width=200).print(catalogue(listing))
    return file.getvalue()


def test_without_a_model_it_says_what_methods_do() -> None:
    registry = Registry.discover()
    text = shown([registry.describe(name) for name in registry.methods])
    assert all(name in text for name in registry.methods)
    assert "attention_mass" in text
    assert "what it does" in text
    assert "supported" not in text


def test_what_a_method_needs_and_why_a_model_lacks_it() -> None:
    base = {"level": "residual", "summary": "s", "needs_image": True, "needs_artifact": True}
    text = shown(
        [
            {**base, "id": "good", "supported": True, "tested": True, "reason": None},
            {**base, "id": "bad", "supported": False, "tested": False, "reason": "it did nothing"},
            {**base, "id": "long", "supported": True, "tested": False, "reason": None},
        ]
    )
    good, bad, long = text.splitlines()[1:4]
    assert "untested" in long
    assert "untested" not in good
    assert "image, artifact" in good
    assert "supported" in good
    assert "it did nothing" in bad


def test_on_the_demo_model_all_are_supported() -> None:
    config = engine_config(device="cpu", cache_tokens=8192, max_num_seqs=4)
    listing = asyncio.run(on_the_model(config))
    assert {item["id"] for item in listing} == set(Registry.discover().methods)
    assert [item["reason"] for item in listing if not item["supported"]] == []
