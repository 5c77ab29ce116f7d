"""uv, as layerkit uses it: resolving for a target that is not this machine, and installing from a lock.

Index settings and credentials are uv's own (its environment variables and configuration files); nothing here reads or
passes them on. What uv prints is freed of credentials before it gets into an error.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from layerkit.errors import ConfigurationError, ExternalError
from layerkit.files import cache_folder
from layerkit.model import Package, Target, normalized
from layerkit.processes import run, without_secrets
from layerkit.runtimes import uv_platform

# uv says which of these a distribution lacks in one of several wordings; the name comes before the phrase.
_NO_WHEEL = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)(?P<version>[<>=!~][^ ,]*)? (?:have|has) no (?:usable wheels|wheels with a matching)"
)
_UNREACHABLE = re.compile(
    r"error sending request|Failed to fetch|dns error|Could not connect|timed out|network was disabled",
    re.IGNORECASE,
)


class Unsatisfiable(Exception):
    """No set of versions satisfies the requirements; the text is uv's explanation."""


class NoWheel(Unsatisfiable):
    """The versions asked for exist, but not as wheels for the target."""

    def __init__(self, name: str, asked: str, explanation: str) -> None:
        super().__init__(explanation)
        self.name = name
        self.asked = asked
        """``numpy==1.21.0``, or the bare name where no version at all has a wheel."""


@cache
def uv_version() -> str:
    """The version of the uv that layerkit runs."""
    return version("uv")


def _find_uv() -> str:
    from uv import find_uv_bin

    return find_uv_bin()


@dataclass(frozen=True)
class Uv:
    """The installer, run in ``root`` so that the checkout's own uv configuration applies."""

    root: Path
    program: str = field(default_factory=_find_uv)

    def versions(
        self,
        projects: Mapping[str, Sequence[str]],
        target: Target,
        folder: Path,
        *,
        preferred: Mapping[str, str] | None = None,
        required: Mapping[str, str] | None = None,
        upgrade: bool = False,
        upgrade_packages: Iterable[str] = (),
        from_sdist: Iterable[str] = (),
    ) -> dict[str, str]:
        """One version of everything that ``projects`` (name -> PEP 508 requirements) need together on ``target``.

        ``preferred`` versions (by distribution) are kept where they fit, ``required`` ones always. Distributions in
        ``from_sdist`` come as source, all others as wheels. The names of ``projects`` are what uv's explanations call
        them; ``folder``, a new one inside the checkout, is for temporary files.

        Raises NoWheel or Unsatisfiable with uv's explanation, ExternalError when uv or the index failed.
        """
        _write_projects(folder, projects)
        (folder / "required.txt").write_text(_pins(required or {}))
        # uv takes preferred versions from the file it is about to write
        (folder / "pins.txt").write_text(_pins(preferred or {}))
        options = ["--constraints=required.txt", "--output-file=pins.txt", "--no-header", "--no-annotate"]
        options += ["--upgrade"] if upgrade else [f"--upgrade-package={name}" for name in upgrade_packages]
        options += [f"--no-emit-package={name}" for name in projects]
        self._compile([*options, *_for_target(target), *_binaries(from_sdist)], folder)
        pins = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", (folder / "pins.txt").read_text(), re.MULTILINE)
        return {normalized(name): version for name, version in pins}

    def locked(
        self,
        project: str,
        requirements: Sequence[str],
        target: Target,
        folder: Path,
        *,
        versions: Mapping[str, str],
        from_sdist: Iterable[str] = (),
    ) -> tuple[Package, ...]:
        """What ``requirements`` need at ``versions``, each with the SHA-256 of the one file that fits ``target``.

        Raises as ``versions`` does.
        """
        _write_projects(folder, {project: requirements})
        (folder / "pins.txt").write_text(_pins(versions))
        options = ["--constraints=pins.txt", "--output-file=pylock.toml"]
        self._compile([*options, *_for_target(target), *_binaries(from_sdist)], folder)
        return _read_pylock(folder / "pylock.toml", project)

    def newest_with_wheel(self, name: str, target: Target, folder: Path) -> str | None:
        """The newest version of ``name`` that has a wheel for ``target``; None where there is none."""
        try:
            return self.versions({"layerkit-probe": [name]}, target, folder).get(normalized(name))
        except Unsatisfiable:
            return None

    def install(self, packages: Sequence[Package], target: Target, into: Path, scratch: Path) -> None:
        """Install exactly ``packages`` into the folder ``into``: hashes checked, copies only, nothing else.

        What is in uv's cache is used without asking the network. Raises ExternalError when a file can't be had or
        does not match its hash.
        """
        wheels = [package for package in packages if not package.sdist]
        sdists = [package for package in packages if package.sdist]
        into.mkdir(parents=True, exist_ok=True)
        for group, options in (
            (wheels, ["--only-binary=:all:"]),
            (sdists, [*(f"--no-binary={package.name}" for package in sdists), *_build_options(), *_sdist_cache()]),
        ):
            if not group:
                continue
            listed = scratch / f"install-{'sdists' if group is sdists else 'wheels'}.txt"
            listed.write_text("".join(render_requirement(package) for package in group))
            command = ["pip", "install", "--no-deps", "--require-hashes", "--link-mode=copy", "--no-compile-bytecode"]
            command += ["--quiet", *_for_target(target), *options, "--target", str(into), "--requirement", str(listed)]
            done = run([self.program, *command, "--offline"], cwd=self.root, env=_build_environment())
            # Below 0 a signal ended it: Ctrl-C reaches uv as well, and nothing is to be begun anew then.
            if done.code > 0:
                done = run([self.program, *command], cwd=self.root, env=_build_environment())
            if done.code != 0:
                raise _install_error(done.stderr, group)

    def _compile(self, options: Sequence[str], folder: Path) -> None:
        # uv looks for its configuration from the working folder upwards, so the checkout's own is found
        command = [self.program, "pip", "compile", "projects.in", "--quiet", *options, *_build_options()]
        done = run(command, cwd=folder, env=_build_environment())
        if done.code == 0:
            return
        explanation = without_secrets(done.stderr).strip()
        if _UNREACHABLE.search(explanation):
            raise ExternalError(
                f"the package index could not be asked:\n{explanation}",
                "Check the network, and uv's index settings and credentials (UV_INDEX_... in the environment).",
            )
        missing = _NO_WHEEL.search(explanation)
        if missing:
            raise NoWheel(normalized(missing["name"]), missing["name"] + (missing["version"] or ""), explanation)
        if "No solution found" in explanation:
            raise Unsatisfiable(explanation)
        raise ExternalError(f"uv could not resolve the requirements:\n{explanation}")


def render_requirement(package: Package) -> str:
    """A package as a hashed requirements file has it."""
    return f"{package}" + "".join(f" \\\n    --hash=sha256:{digest}" for digest in package.hashes) + "\n"


def _for_target(target: Target) -> list[str]:
    # The interpreter that runs uv's own queries is ours, whatever the target; none is ever downloaded for it.
    return [
        f"--python={sys.executable}",
        "--no-python-downloads",
        f"--python-version={target.python_version}",
        f"--python-platform={uv_platform(target)}",
    ]


def _binaries(from_sdist: Iterable[str]) -> list[str]:
    return ["--only-binary=:all:", *(f"--no-binary={name}" for name in from_sdist)]


def _build_backends() -> Path:
    return Path(__file__).parent / "data" / "build-backends.txt"


def _build_options() -> list[str]:
    """How a source distribution is built: with pinned backends."""
    required = ["--require-build-hashes", "--preview-features=build-dependency-hashes"]
    return [f"--build-constraints={_build_backends()}", *required]


def _build_environment() -> dict[str, str]:
    """The environment of a build: nothing from the clock or the hash seed, and no compiler."""
    env = {**os.environ, "SOURCE_DATE_EPOCH": "315532800", "PYTHONHASHSEED": "0"}
    return env | dict.fromkeys(("CC", "CXX", "FC", "LD", "CARGO", "RUSTC"), "/bin/false")


def _sdist_cache() -> list[str]:
    """A cache of its own for built wheels: uv's does not know what they were built with."""
    backends = sha256(_build_backends().read_bytes()).hexdigest()[:16]
    return ["--cache-dir", str(cache_folder() / f"sdists-{backends}")]


def _write_projects(folder: Path, projects: Mapping[str, Sequence[str]]) -> None:
    """One static project for each entry: that makes uv name them when they can't be satisfied together."""
    folder.mkdir(parents=True)
    for name, requirements in projects.items():
        (folder / name).mkdir()
        dependencies = ", ".join(json.dumps(text) for text in requirements)  # a JSON text is a TOML text
        (folder / name / "pyproject.toml").write_text(
            f'[project]\nname = "{name}"\nversion = "0"\ndependencies = [{dependencies}]\n'
        )
    (folder / "projects.in").write_text("".join(f"./{name}\n" for name in projects))


def _pins(versions: Mapping[str, str]) -> str:
    return "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))


def _read_pylock(path: Path, project: str) -> tuple[Package, ...]:
    packages = []
    for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("packages", []):
        if entry["name"] == project:
            continue
        wheels = entry.get("wheels", [])
        kept = wheels or ([entry["sdist"]] if "sdist" in entry else [])
        digests = sorted({file["hashes"]["sha256"] for file in kept if "sha256" in file.get("hashes", {})})
        if not digests:
            raise ExternalError(
                f"the index gives no SHA-256 for {entry['name']} {entry.get('version', '')}, so it can't be locked.",
                "Use an index that does, or put the wheel on one.",
            )
        packages.append(Package(entry["name"], entry["version"], tuple(digests), sdist=not wheels))
    return tuple(sorted(packages))


def _install_error(stderr: str, packages: Sequence[Package]) -> ExternalError | ConfigurationError:
    explanation = without_secrets(stderr).strip()
    if "Hash mismatch" in explanation:
        return ExternalError(
            f"a file does not have the hash that the lock asks for:\n{explanation}",
            "Either the index or a cache has changed it. `uv cache clean NAME` rules out the cache.",
        )
    failed = next((package for package in packages if package.sdist and package.name in explanation), None)
    if failed and re.search(r"build|compil", explanation, re.IGNORECASE) and not _UNREACHABLE.search(explanation):
        # Of a build's whole log, the backend's own last words say what it missed.
        reasons = re.findall(r"^\s*(?:error|\S*Error): .*$", explanation, re.MULTILINE)
        reason = reasons[-1].strip()[:300] if reasons else explanation.splitlines()[0]
        return ConfigurationError(
            f"{failed} can't be built as a pure-Python distribution: {reason}",
            "layerkit compiles nothing. Use a version with a wheel, or build a wheel and put it on an index of yours.",
        )
    return ExternalError(
        f"the locked distributions could not be installed:\n{explanation}",
        "Check the network, and uv's index settings and credentials (UV_INDEX_... in the environment).",
    )
