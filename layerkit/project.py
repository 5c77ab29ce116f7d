"""Reading a checkout: which layers there are, and what their files say.

A folder in ``layers/`` with a ``requirements.txt``, a ``requirements.in`` or a ``src/`` is a layer. Where both
requirement files stand, the ``.in`` is the one that people edit and the other is somebody's compiled output, so the
``.in`` is read.
"""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement as ParsedRequirement

from layerkit.errors import ConfigurationError, LayerkitError
from layerkit.model import Exemption, Layer, Layers, Optimization, Requirement, Target, check_layer_name, normalized
from layerkit.runtimes import check_architecture, runtime_named

OWN_CODE = "src"


@dataclass(frozen=True)
class Project:
    """A checkout: where it is, its layers, and the target it builds for when nobody says otherwise."""

    root: Path
    layers: Layers
    default_target: Target

    def layer_folder(self, name: str) -> Path:
        return self.root / "layers" / name

    def own_code(self, name: str) -> Path:
        return self.layer_folder(name) / OWN_CODE

    def lock_path(self, name: str, target: Target) -> Path:
        return self.layer_folder(name) / "locks" / f"{target}.txt"

    def tree_path(self, name: str, target: Target) -> Path:
        """Where the built tree lies: in the layer's folder for the default target, as the guide has it."""
        if target == self.default_target:
            return self.layer_folder(name) / "python"
        return self.state / "trees" / str(target) / name / "python"

    def zip_path(self, name: str, target: Target) -> Path:
        return self.root / "dist" / f"{name}-{target}.zip"

    def manifest_path(self, name: str, target: Target) -> Path:
        return self.root / "dist" / f"{name}-{target}.json"

    @property
    def state(self) -> Path:
        """What layerkit keeps for itself in the checkout; git-ignored."""
        return self.root / ".layerkit"

    def relative(self, path: Path) -> str:
        """``path`` as it is shown to people and written into manifests: below the root, with forward slashes."""
        return path.relative_to(self.root).as_posix()

    def selected(self, names: Sequence[str]) -> tuple[str, ...]:
        """The layers named (each once, dependencies first), or all when none is; ConfigurationError for a stranger."""
        for name in names:
            if name not in self.layers:
                known = ", ".join(sorted(self.layers)) or "none yet"
                raise ConfigurationError(
                    f"--layer: there is no layer called {name!r}.",
                    f"Layers here: {known}. `inv new --layer NAME` makes one.",
                )
        return tuple(name for name in self.layers if not names or name in names)


def find_layers(root: Path) -> Path:
    """The folder with the layers; ConfigurationError where ``root`` has none."""
    folder = root / "layers"
    if not folder.is_dir():
        raise ConfigurationError(
            f"{folder} does not exist.", "Run this in a checkout that has layers, or make one: inv new --layer NAME."
        )
    return folder


def load_project(root: Path, default_target: Target) -> Project:
    """Read every layer below ``root``; ConfigurationError names the file and the line or key of the first mistake."""
    root = root.resolve()
    layers = [
        _load_layer(root, entry)
        for entry in sorted(find_layers(root).iterdir())
        if not entry.name.startswith(".") and entry.is_dir() and _is_layer(entry)
    ]
    return Project(root=root, layers=Layers(layers), default_target=default_target)


def load_what_loads(root: Path, default_target: Target) -> tuple[Project, dict[str, LayerkitError]]:
    """As ``load_project``, but a layer that can't be read is left out, with all that depends on it, and why is said."""
    root = root.resolve()
    found: dict[str, Layer] = {}
    broken: dict[str, LayerkitError] = {}
    folder = root / "layers"
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not entry.name.startswith(".") and entry.is_dir() and _is_layer(entry):
            try:
                found[entry.name] = _load_layer(root, entry)
            except LayerkitError as error:
                broken[entry.name] = error
    while True:
        try:
            return Project(root=root, layers=Layers(found.values()), default_target=default_target), broken
        except LayerkitError as error:
            # The message begins with the file of the layer whose `depends_on` is wrong.
            name = error.message.split("/")[1]
            cause = next((needed for needed in found[name].depends_on if needed in broken), "")
            message = f"layers/{name}/layer.toml: depends_on names {cause!r}, which can't be read."
            broken[name] = ConfigurationError(message, f"Mend {cause} first.") if cause else error
            del found[name]


def _is_layer(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("requirements.txt", "requirements.in", OWN_CODE))


def _load_layer(root: Path, folder: Path) -> Layer:
    name = check_layer_name(folder.name, "layers/")
    if not folder.resolve().is_relative_to(root / "layers"):
        raise ConfigurationError(
            f"layers/{name} is a link that leads out of layers/.", "Put the layer's folder itself there."
        )
    settings = read_layer_toml(folder / "layer.toml", f"layers/{name}/layer.toml")
    sources = [folder / "requirements.in", folder / "requirements.txt"]
    source = next((path for path in sources if path.exists()), None)
    requirements = read_requirements(source, root) if source else ()
    options: Optimization | None = settings.get("optimization")
    if options and options.verify:
        settings["optimization"] = replace(options, verify_sources=_verify_sources(folder))
    if "exemptions" in settings:
        settings["exemptions"] = tuple(replace(entry, layer=name) for entry in settings["exemptions"])
    return Layer(name=name, requirements=requirements, has_own_code=(folder / OWN_CODE).is_dir(), **settings)


# ---- layer.toml ----


def read_layer_toml(path: Path, where: str) -> dict[str, Any]:
    """The keys of a ``layer.toml`` as Layer's fields; nothing when the file does not exist."""
    if not path.exists():
        return {}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{where}: can't be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{where}: not valid TOML: {error}.") from error
    settings: dict[str, Any] = {}
    optimization: dict[str, Any] = {}
    for key, value in content.items():
        if key in _OPTIMIZATION:
            name, read = _OPTIMIZATION[key]
            optimization[name] = read(value, f"{where}: {key}")
        elif key in _KEYS:
            settings[_FIELDS.get(key, key)] = _KEYS[key](value, f"{where}: {key}")
        else:
            known = ", ".join([*_KEYS, *_OPTIMIZATION])
            raise ConfigurationError(f"{where}: unknown key {key!r}.", f"Known keys: {known}.")
    if optimization:
        settings["optimization"] = Optimization(**optimization)
    if ("max_size_mb" in settings) != ("limit_reason" in settings):
        raise ConfigurationError(
            f"{where}: max_size_mb and limit_reason go together.",
            "A limit other than the usual one needs a reason, and a reason needs a limit.",
        )
    return settings


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError(f"{where} must be a text that is not empty, not {value!r}.")
    return value


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        raise ConfigurationError(f"{where} must be a list of texts, not {value!r}.")
    return tuple(dict.fromkeys(value))


def _positive(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{where} must be a whole number above 0 (MiB), not {value!r}.")
    return value


def _names(value: object, where: str) -> tuple[str, ...]:
    return tuple(normalized(item) for item in _texts(value, where))


def _runtimes(value: object, where: str) -> tuple[str, ...]:
    return tuple(runtime_named(item, where).name for item in _texts(value, where))


def _architectures(value: object, where: str) -> tuple[str, ...]:
    return tuple(check_architecture(item, where) for item in _texts(value, where))


_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def _modules(value: object, where: str) -> tuple[str, ...]:
    for name in _texts(value, where):
        if not _MODULE.fullmatch(name):
            raise ConfigurationError(f"{where} must be names of modules such as 'sklearn.ensemble', not {name!r}.")
    return _texts(value, where)


def read_exemptions(value: object, where: str) -> tuple[Exemption, ...]:
    """Exceptions from the security scan, as layer.toml and invoke.yaml have them: id, reason and expires, no less."""
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ConfigurationError(f"{where} must be a list of exceptions, each with id, reason and expires.")
    found = []
    for number, entry in enumerate(value, 1):
        at = f"{where}: exception {number}"
        unknown = sorted(set(map(str, entry)) - {"id", "reason", "expires"})
        if unknown:
            raise ConfigurationError(f"{at} has {unknown[0]!r}.", "It takes id, reason and expires.")
        for key in ("id", "reason"):
            _text(entry.get(key), f"{at}: {key}")
        found.append(Exemption(entry["id"], entry["reason"], _day(entry.get("expires"), f"{at}: expires"), at))
    return tuple(found)


def _day(value: object, where: str) -> date:
    if isinstance(value, datetime):
        return value.date()
    if isinstance(value, date):
        return value
    try:
        return date.fromisoformat(str(value))
    except ValueError:
        raise ConfigurationError(f"{where} must be a day such as 2027-01-31, not {value!r}.") from None


_KEYS: dict[str, Callable[[object, str], Any]] = {
    "description": _text,
    "stack": _text,
    "depends_on": _texts,
    "runtimes": _runtimes,
    "architectures": _architectures,
    "max_size_mb": _positive,
    "limit_reason": _text,
    "allow_sdist": _names,
    "imports": _modules,
    "exceptions": read_exemptions,
}


_FIELDS = {"exceptions": "exemptions"}
"""Keys whose field of Layer has another name: what a team calls an exception is none of Python's."""


def _bytecode(value: object, where: str) -> str:
    if value not in ("off", "startup", "all"):
        raise ConfigurationError(f"{where} must be 'off', 'startup' or 'all', not {value!r}.")
    return str(value)


def split_command(command: str, where: str) -> list[str]:
    """The words of a command, as a shell would split them; ConfigurationError for one that can't be split."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigurationError(f"{where}: {command!r} is not a command: {error}.") from error
    if not words:
        raise ConfigurationError(f"{where}: it is empty.", "Give a command such as 'python check.py'.")
    return words


def _command(value: object, where: str) -> str:
    command = _text(value, where)
    split_command(command, where)
    return command


_NOT_VERIFYING = re.compile(r"python|locks|src|layer\.toml|requirements.*")
"""What in a layer's folder has a digest of its own, or is made from what has: the built tree above all."""

_CACHES = re.compile(r"__pycache__|.*\.pyc|\..*_cache|\.hypothesis|\.DS_Store")


def _verify_sources(folder: Path) -> str:
    """SHA-256 (hex) over the files in a layer's folder that its ``verify`` command may read.

    Which of them it reads only running it would tell: ``python -m check`` names a module, and that may import others.
    """
    digest = sha256()
    for entry in sorted(folder.iterdir()):
        if _NOT_VERIFYING.fullmatch(entry.name) or _CACHES.fullmatch(entry.name):
            continue
        # An entry may be a link (a draft of the checkout has nothing else): its content counts, wherever that lies.
        for path in _files_below(entry) if entry.is_dir() else [entry]:
            if path.is_file():
                content = sha256(path.read_bytes()).hexdigest()
                digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def _files_below(folder: Path) -> Iterator[Path]:
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _CACHES.fullmatch(name))
        yield from (Path(here, name) for name in sorted(names) if not _CACHES.fullmatch(name))


def _patterns(value: object, where: str) -> tuple[str, ...]:
    """Patterns of paths, also as a function has them (``/opt/python/...``) or the checkout (``python/...``)."""
    found = []
    for pattern in _texts(value, where):
        path = below_tree(pattern)
        if not path:
            raise ConfigurationError(
                f"{where}: {pattern!r} is the whole layer.",
                "Name paths below python/, such as 'numpy/testing', or build with --skip-optimization.",
            )
        found.append(path)
    return tuple(dict.fromkeys(found))


def below_tree(path: str) -> str:
    """A path as a tree has it: without ``/opt/python/``, where Lambda mounts a tree, or ``python/``, where it lies."""
    return re.sub(r"\A(?:/opt/)?python(?:/+|\Z)", "", path.strip()).strip("/")


def _removes(value: object, where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise ConfigurationError(f"{where} must be a table of rules: a name = a list of modules, not {value!r}.")
    return {name: _modules(modules, f"{where}.{name}") for name, modules in value.items()}


_OPTIMIZATION: dict[str, tuple[str, Callable[[object, str], Any]]] = {
    "rules": ("rules", _texts),
    "skip_rules": ("skip_rules", _texts),
    "keep": ("keep", _patterns),
    "services": ("services", _texts),
    "remove": ("removes", _removes),
    "only": ("only", _modules),
    "verify": ("verify", _command),
    "bytecode": ("bytecode", _bytecode),
    "bytecode_budget_mb": ("bytecode_budget_mb", _positive),
}
"""Keys of layer.toml that say how a layer is optimized, with the field of Optimization that each is."""


# ---- requirements files ----

_COMMENT = re.compile(r"(^|\s+)#.*$")
_INCLUDE = re.compile(r"(?:-r(?:\s+|=)?|--requirement(?:\s+|=))(?P<path>\S+)")


def read_requirements(path: Path, root: Path) -> tuple[Requirement, ...]:
    """The requirements in ``path`` and the files it includes with ``-r``; ConfigurationError with file and line."""
    requirements = tuple(_requirements(path, root, ()))
    refuse_second_pins(requirements)
    return requirements


def refuse_second_pins(requirements: Iterable[Requirement]) -> None:
    """ConfigurationError where a distribution is pinned twice for the same environments."""
    pins: dict[tuple[str, str], Requirement] = {}
    for requirement in requirements:
        parsed = ParsedRequirement(requirement.text)
        if all(clause.operator not in ("==", "===") for clause in parsed.specifier):
            continue
        key = (requirement.name, str(parsed.marker or ""))
        if key in pins:
            earlier = pins[key]
            raise ConfigurationError(
                f"{requirement.where}: {requirement.text!r} pins {requirement.name} a second time; "
                f"{earlier.where} has {earlier.text!r}.",
                "Keep one of the two lines.",
            )
        pins[key] = requirement


def _requirements(path: Path, root: Path, including: tuple[Path, ...]) -> Iterator[Requirement]:
    shown = path.relative_to(root).as_posix()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{shown}: can't be read as UTF-8 text: {error}.") from error
    for number, line in _logical_lines(text):
        where = f"{shown}:{number}"
        include = _INCLUDE.fullmatch(line)
        if include:
            if "://" in include["path"]:  # not shown: there may be a password in it
                raise ConfigurationError(
                    f"{where}: a file is included by address; only files of the project can be.",
                    "Put its lines, or the file itself, into the layer's folder.",
                )
            other = (path.parent / include["path"]).resolve()
            if not other.is_relative_to(root):
                raise ConfigurationError(f"{where}: {include['path']!r} lies outside of the project.")
            if other == path or other in including:
                raise ConfigurationError(f"{where}: {include['path']!r} includes itself.")
            if not other.is_file():
                raise ConfigurationError(f"{where}: {include['path']!r} does not exist.")
            yield from _requirements(other, root, (*including, path))
        else:
            yield parse_requirement(line, where)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines as pip reads them: comments out, continued lines joined, blank ones left out; numbered from 1."""
    start, parts = 0, []
    for number, line in enumerate(text.splitlines(), 1):
        start = start or number
        continued = line.endswith("\\") and not line.lstrip().startswith("#")
        parts.append(line[:-1] if continued else line)
        if not continued:
            joined = _COMMENT.sub("", "".join(parts)).strip()
            if joined:
                yield start, joined
            start, parts = 0, []
    joined = _COMMENT.sub("", "".join(parts)).strip()
    if joined:
        yield start, joined


def parse_requirement(line: str, where: str) -> Requirement:
    """One requirement as PEP 508 has it; ConfigurationError, beginning with ``where``, for anything else."""
    if "--hash" in line:
        raise ConfigurationError(
            f"{where}: hashes belong into the lock, which `inv lock` writes.",
            "Where this file is compiled, put its source beside it as requirements.in: then that is read.",
        )
    option = re.match(r"\s*(--[A-Za-z-]*|-[A-Za-z]?)", line)
    if option:
        raise ConfigurationError(  # its value is not shown: there may be a password in it
            f"{where}: the option {option[1]} is not for a layer's requirements.",
            "Indexes are set for uv (UV_INDEX, UV_DEFAULT_INDEX or its configuration); own code goes into src/.",
        )
    try:
        parsed = ParsedRequirement(line)
    except InvalidRequirement as error:
        if "://" in line:
            raise ConfigurationError(f"{where}: a line with an address is not a requirement.") from error
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigurationError(f"{where}: {line!r} is not a requirement: {reason}.") from error
    if parsed.url:
        raise ConfigurationError(
            f"{where}: {parsed.name} is asked for by address; a lock holds distributions of an index only.",
            "Put it on an index that uv is set up for, or its code into src/.",
        )
    return Requirement(name=normalized(parsed.name), text=str(parsed), where=where)
