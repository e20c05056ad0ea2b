"""Imported once by the fork server, so that no cell pays these imports again.

The modules come by a variable, since the fork server takes names of modules only. One that cannot be imported
is reported and left to the cells, where it is an error only if it is needed. Nothing here may start a thread
pool or touch a GPU: neither survives a fork.
"""

import importlib
import os
import sys

VARIABLE = "MLLM_ALIGN_PRELOAD"

for name in os.environ.get(VARIABLE, "").split():
    try:
        importlib.import_module(name)
    except Exception as error:
        print(f"sweep: {name} could not be loaded ahead: {type(error).__name__}: {error}", file=sys.stderr)
