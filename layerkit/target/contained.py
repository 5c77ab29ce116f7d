"""Runs in the target's interpreter, in a process of its own: one import, or one call of a function's handler.

    python -I -S -B contained.py DESCRIPTOR REQUEST

REQUEST is JSON; the answer is JSON too, written to DESCRIPTOR. Standard library only, and Python 3.9's syntax: it has
to run on every runtime. Nothing of layerkit is on the path, and this process ends without running what the imported
modules left to do at exit.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import site
import sys
import time
import traceback
from typing import Any


def limit(memory: int) -> None:
    """No core file, no file above 64 MiB, and at most ``memory`` bytes of address space."""
    for what, wanted in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 64 << 20),
        (resource.RLIMIT_AS, memory),
    ):
        hard = resource.getrlimit(what)[1]
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):  # macOS has no limit on the address space
            resource.setrlimit(what, (wanted, wanted))


def set_path(paths: list[str]) -> None:
    """The layers before the standard library, their .pth files processed, as Lambda's bootstrap does it."""
    sys.path[:0] = paths
    for path in paths:
        for name in sorted(os.listdir(path)):
            if name.endswith(".pth"):
                site.addpackage(path, name, set())
    # What `site` would have put into builtins, had -S not kept it (and the machine's own site-packages) out.
    site.setquit()
    site.setcopyright()
    site.sethelper()


def import_module(request: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    importlib.import_module(request["module"])
    return {"seconds": round(time.perf_counter() - started, 3)}


def load_order(request: dict[str, Any]) -> dict[str, Any]:
    """The files below ``tree`` that an import loads, in the order in which it begins with them."""
    importlib.import_module(request["module"])
    root = request["tree"] + os.sep
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    return {"answer": [file[len(root) :] for file in files if isinstance(file, str) and file.startswith(root)]}


def time_imports(request: dict[str, Any]) -> dict[str, Any]:
    """How long importing the modules takes, one after the other; one that does not import takes what it takes."""
    started = time.perf_counter()
    for name in request["modules"]:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    return {"answer": time.perf_counter() - started}


class Context:
    """What Lambda passes as the context, as far as it is the same everywhere."""

    def __init__(self, name: str, seconds: float) -> None:
        self.function_name = name
        self.function_version = "$LATEST"
        self.memory_limit_in_mb = "128"
        self.aws_request_id = "00000000-0000-0000-0000-000000000000"
        self.invoked_function_arn = "arn:aws:lambda:us-east-1:000000000000:function:" + name
        self.log_group_name = "/aws/lambda/" + name
        self.log_stream_name = "local"
        self.identity = None
        self.client_context = None
        self._deadline = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return max(0, int((self._deadline - time.monotonic()) * 1000))


def call_handler(request: dict[str, Any]) -> dict[str, Any]:
    module, _, function = request["handler"].rpartition(".")
    with open(request["event"], encoding="utf-8") as file:
        event = json.load(file)
    handler = getattr(importlib.import_module(module.replace("/", ".")), function)
    answer = handler(event, Context(request["name"], request["seconds"]))
    return {"answer": json.loads(json.dumps(answer))}


def failure(error: BaseException, paths: list[str]) -> dict[str, Any]:
    """What was raised, which module it missed, and the last line of a layer that it came through."""
    where = ""
    for frame in traceback.extract_tb(error.__traceback__):
        for path in paths:
            if frame.filename.startswith(path + os.sep):
                where = f"{os.path.relpath(frame.filename, path)}:{frame.lineno}"
    kind = type(error).__name__
    try:
        message = str(error)
    except BaseException:  # noqa: BLE001  (__str__ is the module's own, and may do anything too)
        message = "an error that can't be shown"
    # Packages say it in their own words (pandas does), with the error that tells the module behind it.
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ModuleNotFoundError):
        cause = cause.__cause__ or cause.__context__
    missing = cause.name if isinstance(cause, ModuleNotFoundError) and isinstance(error, ImportError) else None
    return {"kind": kind, "message": message[:2000], "missing": missing, "where": where}


DOES = {"import": import_module, "handler": call_handler, "loads": load_order, "time": time_imports}


def main() -> None:
    descriptor, request = int(sys.argv[1]), json.loads(sys.argv[2])
    own = os.getpid()
    sys.argv[1:] = []
    if not sys.flags.isolated:
        sys.path.remove(os.path.dirname(os.path.abspath(__file__)))
    limit(request["memory"])
    if request.get("bytecode"):
        sys.pycache_prefix = request["bytecode"]
    set_path(request["paths"])
    try:
        answer = DOES[request["do"]](request)
    except BaseException as error:  # noqa: BLE001  (a module may raise anything at all, SystemExit included)
        answer = {"failure": failure(error, request["paths"])}
    if os.getpid() == own:  # not in a child that the module has forked
        os.write(descriptor, json.dumps(answer).encode())
    os._exit(0)


main()
