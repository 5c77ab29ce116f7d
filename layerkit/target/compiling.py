"""Runs in the target's interpreter: compiles source files to checked-hash bytecode (PEP 552).

    python -I -S -B compiling.py REQUEST_FILE

The request (JSON) has ``files``: for each the source, where its bytecode goes, and the path that tracebacks show. Each
is compiled in a process of its own, forked from one that has compiled and imported nothing: constants that are in use
elsewhere in a process are marshalled differently, so what came before would show in the bytes. Standard library only,
and Python 3.9's syntax.
"""

from __future__ import annotations

import contextlib
import json
import os
import py_compile
import sys


def compile_one(source: str, bytecode: str, shown: str) -> None:
    # Templates and deliberately broken test files are without bytecode what they were.
    with contextlib.suppress(py_compile.PyCompileError, UnicodeDecodeError, ValueError, RecursionError):
        py_compile.compile(
            source, bytecode, shown, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH
        )


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        request = json.load(file)
    for source, bytecode, shown in request["files"]:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                compile_one(source, bytecode, shown)
                code = 0
            finally:
                os._exit(code)
        if os.waitpid(child, 0)[1] != 0:
            os._exit(1)
    os._exit(0)


main()
