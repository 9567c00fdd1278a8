"""Names and seeds of requests: random, not secret.

The system's own source of random numbers costs a call in which the interpreter is given away; with
other threads at work a request would wait for it again each time.
"""

from __future__ import annotations

import random
import re
import secrets

_random = random.Random(secrets.randbits(256))

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
"""What a client may call its request."""


def new_id() -> str:
    """32 hexadecimal digits that no other request has."""
    return f"{_random.getrandbits(128):032x}"


def new_seed(bound: int) -> int:
    """An integer from 0 to below ``bound``."""
    return _random.randrange(bound)
