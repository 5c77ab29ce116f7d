"""What a checkout is set to: Invoke's own configuration, checked, and where the checkout is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoke.context import Context

from layerkit.errors import ConfigurationError
from layerkit.interpreters import Interpreter
from layerkit.model import MIB, Exemption, Target
from layerkit.probing import Bounds
from layerkit.project import Project, load_project, read_exemptions
from layerkit.runtimes import check_architecture, runtime_named

if TYPE_CHECKING:
    from layerkit.optimizing import Optimizer
    from layerkit.results import Results
    from layerkit.validating import Means

DEFAULTS: dict[str, Any] = {
    "runtime": "python3.13",
    "architecture": "x86_64",
    "jobs": 0,
    "interpreters": {},
    "check_seconds": 60,
    "check_memory_mb": 4096,
    "verify_seconds": 600,
    "results": "",
    "osv_url": "https://api.osv.dev",
    "advisories_url": "https://osv-vulnerabilities.storage.googleapis.com/PyPI/all.zip",
    "safety": "required",
    "exceptions": [],
    "licences_deny": [],
    "licences_known": {},
    "environments": {},
}
"""Every setting under ``layerkit:`` and its default.

``jobs`` 0 means one for each processor. ``interpreters`` are paths by Python version (``"3.13": /opt/python3.13``).
``osv_url`` is the advisory service, ``advisories_url`` the archive for the local database, ``safety`` required,
optional or off; ``exceptions`` are what a security scan does not count (id, reason, expires), ``licences_deny`` the
licences that it does, ``licences_known`` what distributions are under that do not say so.
``environments`` are the accounts and regions that layers are published to (docs/environments.md).
``results`` is a folder where a team shares what was proven and checked (below the root, or an absolute path).
``verify_seconds`` is how long a layer's own ``verify`` may run, once. ``check_seconds`` and ``check_memory_mb`` bound
each process that imports or calls what is being checked.
"""


def find_root() -> Path:
    """The checkout: LAYERKIT_ROOT, else the one these tasks lie in, else the nearest folder above with ``layers/``."""
    named = os.environ.get("LAYERKIT_ROOT")
    if named:
        return Path(named).resolve()
    own = Path(__file__).resolve().parent.parent
    if (own / "tasks.py").exists():
        return own
    here = Path.cwd().resolve()
    return next((folder for folder in (here, *here.parents) if (folder / "layers").is_dir()), here)


@dataclass(frozen=True)
class ScanSettings:
    """How this checkout is scanned."""

    osv_url: str
    advisories_url: str
    safety: str
    """``required``, ``optional`` or ``off``."""
    exemptions: tuple[Exemption, ...]
    licences_deny: tuple[str, ...]
    licences_known: Mapping[str, str]


@dataclass(frozen=True)
class Settings:
    """The settings that hold for one call: flags before environment before invoke.yaml before defaults."""

    root: Path
    default_target: Target
    target: Target
    jobs: int
    interpreters: Mapping[str, str]
    bounds: Bounds
    shared: Path | None
    scan: ScanSettings
    verify_seconds: int

    def results(self) -> Results:
        """What was proven and checked before: of this user, and of the team."""
        from layerkit.files import cache_folder
        from layerkit.results import Results

        return Results(cache_folder() / "results", self.shared)

    def project(self) -> Project:
        return load_project(self.root, self.default_target)

    def optimizer(self, target: Target) -> Optimizer:
        """What layers for ``target`` are optimized with."""
        from layerkit.interpreters import find_interpreter, interpreter_for
        from layerkit.optimizing import optimizer_for

        proof = interpreter_for(target, self.interpreters)
        own = proof if isinstance(proof, Interpreter) else find_interpreter(target.python_version, self.interpreters)
        made = optimizer_for(target, proof, own, self.results(), self.jobs)
        return replace(made, verify_seconds=self.verify_seconds)

    def means(self, target: Target, *, only: Sequence[str] = (), skip: Sequence[str] = ()) -> Means:
        """What checks for ``target`` run with; ConfigurationError for a check or an interpreter that is none."""
        from layerkit.interpreters import interpreter_for
        from layerkit.validating import Means, check_names

        return Means(
            interpreter_for(target, self.interpreters),
            self.results(),
            self.jobs,
            self.bounds,
            check_names(only, "--only"),
            check_names(skip, "--skip"),
        )


def settings(ctx: Context, *, runtime: str | None = None, architecture: str | None = None, jobs: int = 0) -> Settings:
    """Read and check the settings; ConfigurationError names the setting or flag that is wrong."""
    configured = dict(ctx.config.get("layerkit") or {})
    unknown = sorted(set(configured) - set(DEFAULTS))
    if unknown:
        known = ", ".join(DEFAULTS)
        raise ConfigurationError(f"layerkit.{unknown[0]} is not a setting.", f"Known under layerkit: {known}.")
    values = {**DEFAULTS, **configured}
    for key, default in DEFAULTS.items():
        if not isinstance(values[key], type(default)):
            kind = {int: "a whole number", str: "a text", dict: "names with values", list: "a list"}[type(default)]
            hint = 'YAML reads off as false: write safety: "off".' if key == "safety" and values[key] is False else ""
            raise ConfigurationError(f"layerkit.{key} must be {kind}, not {values[key]!r}.", hint)
    default_target = _target(values["runtime"], values["architecture"], "layerkit.runtime", "layerkit.architecture")
    target = _target(
        default_target.runtime if runtime is None else runtime,
        default_target.architecture if architecture is None else architecture,
        "--runtime",
        "--architecture",
    )
    wanted = jobs or values["jobs"] or os.cpu_count() or 1
    if wanted < 1:
        raise ConfigurationError(f"--jobs must be 1 or more, not {wanted}.")
    for key in ("check_seconds", "check_memory_mb", "verify_seconds"):
        if values[key] < 1:
            raise ConfigurationError(f"layerkit.{key} must be 1 or more, not {values[key]}.")
    interpreters = {str(version): str(path) for version, path in values["interpreters"].items()}
    bounds = Bounds(values["check_seconds"], values["check_memory_mb"] * MIB)
    root = find_root()
    shared = root / values["results"] if values["results"] else None
    return Settings(
        root,
        default_target,
        target,
        wanted,
        interpreters,
        bounds,
        shared,
        _scan_settings(values),
        values["verify_seconds"],
    )


def _scan_settings(values: Mapping[str, Any]) -> ScanSettings:
    if values["safety"] not in ("required", "optional", "off"):
        raise ConfigurationError(f"layerkit.safety must be required, optional or off, not {values['safety']!r}.")
    if not all(isinstance(pattern, str) and pattern for pattern in values["licences_deny"]):
        raise ConfigurationError("layerkit.licences_deny must be a list of licences such as GPL-3.0-only.")
    return ScanSettings(
        values["osv_url"],
        values["advisories_url"],
        values["safety"],
        read_exemptions(values["exceptions"], "invoke.yaml: layerkit.exceptions"),
        tuple(values["licences_deny"]),
        {str(name): str(expression) for name, expression in values["licences_known"].items()},
    )


def _target(runtime: str, architecture: str, runtime_from: str, architecture_from: str) -> Target:
    return Target(runtime_named(runtime, runtime_from).name, check_architecture(architecture, architecture_from))
