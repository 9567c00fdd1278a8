"""Python for a page under test: reads scripts as lines of JSON and runs them in one namespace.

Answers with what each printed and, if it failed, the traceback.
"""

import contextlib
import io
import json
import sys
import traceback


def main() -> None:
    names = {"__name__": "__main__"}
    for line in sys.stdin:
        error = ""
        with contextlib.redirect_stdout(io.StringIO()) as output:
            try:
                exec(compile(json.loads(line), "<block>", "exec"), names)
            except BaseException:
                error = traceback.format_exc()
        print(json.dumps({"output": output.getvalue(), "error": error}), flush=True)


if __name__ == "__main__":
    main()
