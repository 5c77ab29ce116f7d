"""Checkouts in a temporary folder, and the program run on them as a process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layerkit.building import Built, build, plan_build
from layerkit.files import cache_folder
from layerkit.installer import Uv
from layerkit.interpreters import Interpreter, architecture_here, interpreter_for
from layerkit.locking import lock
from layerkit.model import LockChange, Report, Target
from layerkit.optimizing import Optimizer, optimizer_for
from layerkit.probing import Bounds
from layerkit.project import Project, load_project
from layerkit.results import Results
from layerkit.standing import validate_checkout
from layerkit.validating import Means

REPOSITORY = Path(__file__).resolve().parent.parent.parent
TARGET = Target("python3.13", "x86_64")

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
HERE = Target(f"python{VERSION}", architecture_here())
"""The target that this very Python can run: what tests import, they import with it."""
FOREIGN = Target(HERE.runtime, "arm64" if HERE.architecture == "x86_64" else "x86_64")


@dataclass
class Checkout:
    """A folder with layers, and the environment in which its index is the tests' own."""

    root: Path
    environment: dict[str, str]
    counter: list[int] = field(default_factory=lambda: [0])

    def layer(self, name: str, requirements: str, settings: str = "", code: Mapping[str, str] | None = None) -> Path:
        """Make or change a layer."""
        folder = self.root / "layers" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "requirements.txt").write_text(requirements)
        if settings:
            (folder / "layer.toml").write_text(settings)
        for path, text in (code or {}).items():
            (folder / "src" / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / "src" / path).write_text(text)
        return folder

    @property
    def project(self) -> Project:
        return load_project(self.root, TARGET)

    def lock(self, target: Target = TARGET, **options: Any) -> dict[str, LockChange]:
        project = self.project
        self.counter[0] += 1
        scratch = project.state / "work" / f"test-{self.counter[0]}"
        try:
            changes = lock(project, [target], uv=Uv(self.root), scratch=scratch, **options)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return {change.layer: change for change in changes}

    def build(self, names: Sequence[str] = (), target: Target = TARGET, **options: Any) -> dict[str, Built]:
        """Plan and build in this process, without locking first."""
        project = self.project
        force = options.pop("force", False)
        options.setdefault("means", None)
        optimizer = options.get("optimizer")
        plans = plan_build(project, target, project.selected(names), optimizer=optimizer, force=force)
        results = build(project, plans, uv=Uv(self.root), jobs=2, **options)
        return {result.plan.layer.name: result for result in results}

    def means(self, target: Target = HERE, **options: Any) -> Means:
        """What checks run with: this Python for the target that it can run."""
        options.setdefault("bounds", Bounds(seconds=30.0))
        interpreter = interpreter_for(target, {VERSION: sys.executable})
        return Means(interpreter, Results(cache_folder() / "results"), 2, **options)

    def optimizer(self, target: Target = HERE) -> Optimizer:
        """What layers are optimized with: this Python, as above."""
        proof = interpreter_for(target, {VERSION: sys.executable})
        own = proof if isinstance(proof, Interpreter) else None
        return optimizer_for(target, proof, own, Results(cache_folder() / "results"), 2)

    def validate(self, *names: str, target: Target = HERE, **options: Any) -> Report:
        """Run the layer checks in this process on what is built."""
        project = self.project
        means = self.means(target, **options)
        return validate_checkout(project, project.selected(names), target, means, self.optimizer(target))

    def versions(self, name: str, target: Target = TARGET) -> dict[str, str]:
        """What a layer's lock has: distribution -> version."""
        lines = self.project.lock_path(name, target).read_text().splitlines()
        pins = [line.split(" ")[0].split("==") for line in lines if "==" in line]
        return {pin[0]: pin[1] for pin in pins}

    def inv(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the program as a process."""
        return subprocess.run(
            self.command(*words),
            cwd=options.pop("cwd", self.root),
            env={**os.environ, **self.environment, **options.pop("env", {})},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            **options,
        )

    def command(self, *words: str) -> list[str]:
        return [sys.executable, str(REPOSITORY / "tasks.py"), *words]

    def inv_json(self, *words: str) -> dict[str, Any]:
        """Run the program with --json; the document, which has to be all of stdout."""
        done = self.inv(*words, "--json")
        document = json.loads(done.stdout)
        assert isinstance(document, dict)
        return document

    def snapshot(self) -> dict[str, bytes]:
        """Every file of the checkout but layerkit's own state, with its content."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            relative = path.relative_to(self.root)
            if path.is_file() and relative.parts[0] != ".layerkit":
                found[relative.as_posix()] = path.read_bytes()
        return found
