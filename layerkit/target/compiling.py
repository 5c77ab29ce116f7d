"""Runs in the target's interpreter: compiles source files to checked-hash bytecode (PEP 552).

    python -I -S -B compiling.py REQUEST_FILE

The request (JSON) has ``files``: for each the source, where its bytecode goes, and the path that tracebacks show. The
process has imported nothing of a layer: bytecode written by one that had comes out with other bytes, since constants
that are in use elsewhere are marshalled differently. Standard library only, and Python 3.9's syntax.
"""

from __future__ import annotations

import json
import os
import py_compile
import sys


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        request = json.load(file)
    for source, bytecode, shown in request["files"]:
        try:
            py_compile.compile(
                source, bytecode, shown, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH
            )
        except (py_compile.PyCompileError, UnicodeDecodeError, ValueError, RecursionError):
            continue  # templates and deliberately broken test files: without bytecode they are what they were
    sys.stdout.flush()
    os._exit(0)


main()
