"""Code run as Lambda would run it: by the target's interpreter, with the layers before the standard library.

Each import and each call is a process of its own, with nothing of this machine's site-packages on its path, no
bytecode written, one thread for numeric libraries, and an end to its time and memory. What runs there is
``target/contained.py``.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layerkit.errors import ExternalError
from layerkit.interpreters import Interpreter
from layerkit.model import MIB, Target
from layerkit.processes import Contained, run_contained, threads

_SCRIPT = Path(__file__).parent / "target" / "contained.py"


@dataclass(frozen=True)
class Failure:
    """Why an import or a call did not end well."""

    message: str
    """One line for a person."""
    missing: str = ""
    """The module that was not found, where that was it."""
    unsettled: bool = False
    """Whether its time was up, or the system killed it: on a busy machine another try may end otherwise."""


@dataclass(frozen=True)
class Outcome:
    """What came of one import or call: ``answer`` is a handler's, ``seconds`` wall time of the whole process."""

    failure: Failure | None
    seconds: float
    answer: Any = None


@dataclass(frozen=True)
class Bounds:
    """How long a process may take, in seconds, and how much address space it may have, in bytes."""

    seconds: float = 60.0
    memory: int = 4096 * MIB


@dataclass(frozen=True)
class Prober:
    """An interpreter, and the bounds for what it runs."""

    interpreter: Interpreter
    bounds: Bounds = field(default_factory=Bounds)

    def imports(self, wanted: Sequence[tuple[str, Sequence[Path]]], target: Target, jobs: int) -> list[Outcome]:
        """Import modules, each with its trees (in the order that a function lists its layers) on the path."""

        def one(module: str, trees: Sequence[Path]) -> Outcome:
            return self._run({"do": "import", "module": module}, search_path(trees, target))

        with threads(jobs) as pool:
            return list(pool.map(lambda pair: one(*pair), wanted))

    def loads(
        self,
        modules: Sequence[str],
        tree: Path,
        trees: Sequence[Path],
        target: Target,
        jobs: int,
        bytecode: Path | None,
    ) -> list[str]:
        """The files of ``tree`` that importing ``modules`` loads, in load order; a module that fails loads none."""

        def one(module: str) -> list[str]:
            request = {"do": "loads", "module": module, "tree": str(tree), "bytecode": str(bytecode or "")}
            return self._run(request, search_path(trees, target), hash_seed="0").answer or []

        with threads(jobs) as pool:
            return list(dict.fromkeys(path for found in pool.map(one, modules) for path in found))

    def time(self, modules: Sequence[str], trees: Sequence[Path], target: Target) -> float:
        """Seconds that importing ``modules`` takes, all in one fresh process; its start is not in it."""
        outcome = self._run({"do": "time", "modules": list(modules)}, search_path(trees, target))
        if outcome.failure:
            raise ExternalError(f"imports could not be timed: {outcome.failure.message}")
        return float(outcome.answer)

    def call(
        self, name: str, handler: str, folder: Path, event: Path, trees: Sequence[Path], target: Target
    ) -> Outcome:
        """Call a function's ``handler`` (``app.lambda_handler``) in ``folder`` with the JSON in the file ``event``."""
        request = {
            "do": "handler",
            "name": name,
            "handler": handler,
            "event": str(event),
            "seconds": self.bounds.seconds,
        }
        return self._run(request, [str(folder), *search_path(trees, target)])

    def _run(self, request: Mapping[str, Any], path: Sequence[str], hash_seed: str = "") -> Outcome:
        """Run ``target/contained.py``; with ``hash_seed`` what depends on the order of sets comes out the same."""
        # With -I no variable counts; none but ours is set, and the script takes its own folder off the path.
        flags = ["-s"] if hash_seed else ["-I"]
        seed = {"PYTHONHASHSEED": hash_seed} if hash_seed else {}
        asked = json.dumps({**request, "paths": list(path), "memory": self.bounds.memory})
        with tempfile.TemporaryDirectory(prefix="layerkit-") as scratch:
            done = run_contained(
                [self.interpreter.path, *flags, "-S", "-B", _SCRIPT, "{report}", asked],
                cwd=Path(scratch),
                env={**lambda_environment(scratch), **seed},
                seconds=self.bounds.seconds,
            )
        return self._outcome(done)

    def _outcome(self, done: Contained) -> Outcome:
        try:
            report: dict[str, Any] = json.loads(done.report)
        except ValueError:
            unsettled = done.code in (None, -signal.SIGKILL)
            return Outcome(Failure(self._ended(done), unsettled=unsettled), done.seconds)
        failed = report.get("failure")
        if failed:
            place = f" ({failed['where']})" if failed["where"] else ""
            message = f"{failed['kind']}: {' '.join(str(failed['message']).split())}{place}"
            return Outcome(Failure(message, failed["missing"] or ""), done.seconds)
        return Outcome(None, done.seconds, report.get("answer"))

    def _ended(self, done: Contained) -> str:
        """What to say of a process that left no report."""
        said = done.output.strip().splitlines()
        last = f"; it last said: {said[-1][:200]}" if said else ""
        if done.code is None:
            return f"it had not ended after {self.bounds.seconds:g} s{last}"
        if done.code < 0:
            return f"it was ended by signal {-done.code}{last}"
        return f"it ended its process with exit code {done.code}{last}"


def search_path(trees: Sequence[Path], target: Target) -> list[str]:
    """The folders that Lambda's bootstrap puts on the path for layers in the order listed: a later one goes before."""
    below = Path("lib") / target.runtime / "site-packages"
    last_first = list(reversed(trees))
    return [str(tree / below) for tree in last_first if (tree / below).is_dir()] + [str(tree) for tree in last_first]


def lambda_environment(scratch: str) -> dict[str, str]:
    """The variables that a function has on Lambda, as far as code looks at them, and nothing of this machine's."""
    threads = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    # Some processors need these to get right results from OpenBLAS; they are this machine's, not its user's.
    kept = {name: os.environ[name] for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if name in os.environ}
    return {
        **kept,
        **dict.fromkeys(threads, "1"),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "en_US.UTF-8",
        "TZ": ":UTC",
        "HOME": scratch,
        "TMPDIR": scratch,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
