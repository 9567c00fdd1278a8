"""Python for a page under test: reads scripts as lines of JSON and runs them in one namespace.

Answers null, or the traceback as a text; what scripts print goes to standard error.
"""

import json
import os
import sys
import traceback


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    names = {"__name__": "__main__"}
    for line in sys.stdin:
        try:
            exec(compile(json.loads(line), "<block>", "exec"), names)
        except BaseException:
            print(json.dumps(traceback.format_exc()), file=answers)
        else:
            print("null", file=answers)


if __name__ == "__main__":
    main()
