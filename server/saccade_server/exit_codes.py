"""How ``saccade serve`` ends, as numbers that a supervisor can act on.

Other commands have 0, 2 and 3 in the same sense.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """1 and 2 are what Python and the command line give to their own failures too."""

    STOPPED = 0
    FAILED = 1
    USAGE = 2
    MODEL = 3
    HUNG = 4


MEANINGS = {
    ExitCode.STOPPED: "stopped by a signal, at any time once its code runs",
    ExitCode.FAILED: "failed while it served: the engine died, or the server did; start it again",
    ExitCode.USAGE: "an option, a port, a folder or a profile cannot be used; starting it again "
    "will not help",
    ExitCode.MODEL: "the model cannot be loaded, or not with these options",
    ExitCode.HUNG: "the engine hung, and --on-hang is exit; start it again",
}

EPILOG = "\n\n".join(
    ["Exit codes:", *(f"{code:d}  {meaning}" for code, meaning in MEANINGS.items())]
)
"""What ``--help`` says of them, a paragraph a line."""
