"""GET /: the playground, ES modules and styles as they lie in this package; nothing is built.

Its one inline script is the import map, without which modules cannot name the libraries beside
them; the policy names its hash.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from saccade_server.api.pages import Part, policy
from saccade_server.demo import SAMPLES

PLAYGROUND = "/"

OURS, DEMO = "saccade_server.api.playground", "saccade_server.demo"
FOLDERS = ("static", "static/vendor")
INLINE = re.compile(rb'<script type="importmap">(.*?)</script>', re.DOTALL)


def _parts() -> dict[str, Part]:
    """What is sent, by path: the page, its files, and pictures to begin with."""
    parts = {PLAYGROUND: Part(OURS, "index.html")}
    for folder in FOLDERS:
        for file in files(OURS).joinpath(folder).iterdir():
            if file.is_file():
                path = f"/playground{folder.removeprefix('static')}/{file.name}"
                parts[path] = Part(OURS, f"{folder}/{file.name}")
    for name in SAMPLES:
        parts[f"/playground/samples/{name}.png"] = Part(DEMO, f"samples/{name}.png")
    return parts


def _policy() -> str:
    (inline,) = INLINE.findall(Part(OURS, "index.html").read())
    digest = base64.b64encode(hashlib.sha256(inline).digest()).decode()
    return policy(scripts=f"'self' 'sha256-{digest}'")


PLAYGROUND_PARTS = _parts()
PLAYGROUND_POLICY = _policy()
