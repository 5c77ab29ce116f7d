"""The team's own proof: a command of theirs (``verify`` in layer.toml), run with the layer on the path."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from layerkit.errors import ConfigurationError
from layerkit.interpreters import Interpreter
from layerkit.model import Target
from layerkit.oracle import unchanged
from layerkit.probing import lambda_environment, search_path
from layerkit.processes import run_contained
from layerkit.project import split_command


@dataclass(frozen=True)
class Verification:
    """A command, run in ``folder`` (the layer's own) for at most ``seconds``, in the environment of a function.

    The words ``python`` and ``python3`` at its beginning are the target's interpreter. No shell reads it.
    """

    command: str
    folder: Path
    interpreter: Interpreter
    target: Target
    scratch: Path
    seconds: float

    def run(self, tree: Path, below: Sequence[Path]) -> str:
        """What is wrong with ``tree`` on top of the trees ``below``; empty when the command ends with 0."""
        home = self.scratch / "verify"
        home.mkdir(parents=True, exist_ok=True)
        environment = {
            **lambda_environment(str(home)),
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": os.pathsep.join(search_path([*below, tree], self.target)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "LAYERKIT_TREE": str(tree),
        }
        with unchanged(tree):
            done = run_contained(self._words(), cwd=self.folder, env=environment, seconds=self.seconds)
        if done.code == 0:
            return ""
        said = done.output.strip().splitlines()
        last = f"; it last said: {said[-1][:300]}" if said else ""
        if done.code is None:
            return f"it had not ended after {self.seconds:g} s{last}"
        ended = f"it was ended by signal {-done.code}" if done.code < 0 else f"it ended with {done.code}"
        return ended + last

    def _words(self) -> list[str]:
        first, *others = split_command(self.command, "verify")
        if first in ("python", "python3"):
            return [str(self.interpreter.path), *others]
        found = str(self.folder / first) if "/" in first else shutil.which(first)
        if not found or not os.access(found, os.X_OK):
            raise ConfigurationError(
                f"{self.folder.name}: verify: there is no program {first!r}.",
                "Begin the command with `python`, a program on PATH, or a path in the layer's folder.",
            )
        return [found, *others]
