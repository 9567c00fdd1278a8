"""The model that vectors are imported for: one that is here, or that of a server."""

from __future__ import annotations

from typing import Any

import httpx2

from saccade_server.importing.convert import Converted, Target
from saccade_server.importing.found import ImportRefused

TIMEOUT_SECONDS = 120.0


def target_of(model: str | None, dtype: str) -> Target:
    """A model of this machine, or the demo model; its weights are loaded for their fingerprint.

    ``dtype``: auto is bfloat16, which takes half the memory of float32 and gives the same one.

    Raises:
        UnsupportedModelError: it cannot be served.
    """
    import torch

    from saccade_server.config import engine_config
    from saccade_server.models.family import load_model
    from saccade_server.models.fingerprint import fingerprint

    config = engine_config(model, device="cpu", dtype="bfloat16" if dtype == "auto" else dtype)
    kind, device = getattr(torch, config.dtype), torch.device("cpu")
    loaded = load_model(config.model, dtype=kind, device=device)
    return Target(fingerprint(loaded), loaded.layers, loaded.hidden_size)


class Remote:
    """A server of this project, by its address."""

    def __init__(self, url: str, api_key: str | None, admin_key: str | None) -> None:
        self._url, self._admin_key = url, admin_key
        key = api_key or admin_key
        headers = {"authorization": f"Bearer {key}"} if key else {}
        base = url.rstrip("/").removesuffix("/v1")
        self._client = httpx2.Client(base_url=base, headers=headers, timeout=TIMEOUT_SECONDS)

    def close(self) -> None:
        """End its connections."""
        self._client.close()

    def target(self) -> Target:
        """The model that is served.

        Raises:
            ImportRefused: nobody answers, or something else than such a server.
        """
        try:
            card = self._send("GET", "/v1/models")["data"][0]
            sizes = int(card["layers"]), int(card["hidden_size"])
            return Target(str(card["fingerprint"]), *sizes)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            if isinstance(error, ImportRefused):
                raise
            raise ImportRefused(f"--url {self._url}: this is no server of Saccade") from None

    def upload(self, made: Converted) -> None:
        """Put an artifact there.

        Raises:
            ImportRefused: the server does not take it; the message is its own.
        """
        path = f"/v1/artifacts/{made.digest.removeprefix('sha256:')}"
        headers = {"content-type": "application/octet-stream"}
        if self._admin_key:
            headers["authorization"] = f"Bearer {self._admin_key}"
        self._send("PUT", path, content=made.data, headers=headers)

    def _send(self, method: str, path: str, **more: Any) -> Any:
        try:
            answer = self._client.request(method, path, **more)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ImportRefused(f"--url {self._url}: {error or type(error).__name__}") from None
        if answer.is_success:
            return answer.json()
        try:
            said = answer.json()["error"]["message"]
        except (KeyError, TypeError, ValueError):
            said = f"it answers with status {answer.status_code}"
        raise ImportRefused(f"--url {self._url}: {said}")
