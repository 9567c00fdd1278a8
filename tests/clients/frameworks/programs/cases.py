"""Runs a program's cases and prints a line of JSON for each: its name, and what went wrong."""

import asyncio
import inspect
import json
import os
import sys
import traceback

BASE_URL = os.environ.get("SACCADE_URL", "") + "/v1"
API_KEY = "none"
MODEL = "tiny"


def run(module):
    """Run every public function of the program, or those that are named on the command line."""
    cases = {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }
    for name in sys.argv[1:] or cases:
        try:
            result = cases[name]()
            if inspect.iscoroutine(result):
                asyncio.run(result)
            fault = None
        except Exception:
            fault = traceback.format_exc(limit=-6)
        print(json.dumps({"case": name, "fault": fault}), flush=True)
