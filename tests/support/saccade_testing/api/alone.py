"""A server over the scripted engine in a process of its own, which a test can kill.

``python -m saccade_testing.api.alone DELAY``: seconds between tokens; prints its address.
"""

import sys
import threading

from saccade_testing.api.fakes import FakeEngine
from saccade_testing.api.server import start_server

if __name__ == "__main__":
    engine = FakeEngine(answer="one two three " * 200, delay=float(sys.argv[1]))
    print(start_server(engine).url, flush=True)
    threading.Event().wait()
