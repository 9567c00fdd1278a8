"""The process that tries grammars out, so that whatever one does, it ends within its limits.

llguidance's own limits leave cases that take minutes: products of patterns, multiples of large
numbers, chains of thousands of rules. A line of JSON in is a task and a text, a line out is what
became of the text, what is wrong with it, or null, and the seconds of CPU time that it took. A text
that takes too long or too much memory ends the process.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Final

from saccade_server.grammars.limits import CHECK_BYTES, CHECK_CPU_SECONDS, CHECK_SECONDS
from saccade_server.grammars.trial import lark_of, tried

SOURCE: Final = "source"
EBNF: Final = "ebnf"


STACK_BYTES: Final = 1 << 20
"""Of the thread that compiles: less than any has that compiles for answers, whose end would be that
of the engine. Grammars nested too deeply for it end this process."""


def main() -> None:
    """Answer until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever asks
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (_held() + CHECK_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=_answer)
    thread.start()
    thread.join()


def _answer() -> None:
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, CHECK_CPU_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, CHECK_SECONDS)
        began = time.process_time()
        task, text = json.loads(line)
        answer = lark_of(text) if task == EBNF else (text, tried(text))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps((*answer, time.process_time() - began)), flush=True)


def _held() -> int:
    """Bytes of address space that the libraries have taken."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
