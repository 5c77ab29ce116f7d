"""The layer model: frozen values, standard library only, no I/O.

Sizes are bytes. Names are AWS's: a *runtime* is ``python3.13``, an *architecture* ``x86_64`` or ``arm64``; a *target*
is one of each. A *distribution* is what a wheel installs, a *layer* what a function attaches.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from enum import Enum

from layerkit.errors import ConfigurationError

MIB = 1024 * 1024

RUNTIME_BOTO3 = ("boto3", "botocore", "s3transfer", "jmespath", "urllib3")
"""What every Python runtime on Lambda brings of the SDK: distributions, and modules of the same names."""

SYMBOLS = "debug-symbols"
"""The rule that changes files, where others remove them."""

VERIFY = "(verify)"
"""In place of an import's name: the team's own command is what needs something."""

ANOTHER_FILE = "(another file)"
"""In place of an import's name: it is another file where its rule was decided, so that nothing is known of it."""


def kept_by(layer: str) -> str:
    """In place of an import's name: another layer of the stack, which carries the same distribution, keeps it."""
    return f"(layer {layer})"


def keeper(reason: str) -> str:
    """The layer that ``kept_by`` was given; empty for an import's name and VERIFY."""
    return reason.removeprefix("(layer ").removesuffix(")") if reason.startswith("(layer ") else ""


LAYER_NAME = re.compile(r"[A-Za-z0-9_-]{1,140}")
"""What AWS accepts as LayerName (API reference, PublishLayerVersion), apart from the ARN form."""


def normalized(name: str) -> str:
    """The one spelling of a distribution's name (PEP 503): ``Python_Dateutil`` -> ``python-dateutil``."""
    return re.sub(r"[-_.]+", "-", name).lower()


def check_layer_name(name: str, where: str) -> str:
    """``name`` itself when AWS and a folder can carry it; ConfigurationError otherwise."""
    if not LAYER_NAME.fullmatch(name):
        shown = repr(name) if name else "an empty name"
        raise ConfigurationError(
            f"{where}: {shown} can't be the name of a layer.",
            "AWS allows letters, digits, '-' and '_', at most 140 of them.",
        )
    return name


@dataclass(frozen=True, order=True)
class Target:
    """What a layer is built for."""

    runtime: str
    architecture: str

    def __str__(self) -> str:
        return f"{self.runtime}-{self.architecture}"

    @property
    def python_version(self) -> str:
        """``3.13`` for ``python3.13``."""
        return self.runtime.removeprefix("python")


@dataclass(frozen=True)
class Runtime:
    """One Lambda runtime, as the data file ``data/runtimes.toml`` describes it."""

    name: str
    os: str
    glibc: str
    platforms: Mapping[str, str]
    """The platform uv resolves for, by architecture."""
    deprecated: date
    block_create: date
    block_update: date


@dataclass(frozen=True)
class System:
    """What a Lambda operating system has for compiled code, as the data file ``data/libraries.toml`` describes it."""

    os: str
    symbols: Mapping[str, str]
    """The highest symbol version by family: ``{"GLIBC": "2.34"}``."""
    libraries: frozenset[str]
    """The file names of the libraries that are there for certain."""


@dataclass(frozen=True)
class Requirement:
    """One line of a requirements file: the text as PEP 508 has it, and where it stands (``file:line``)."""

    name: str
    text: str
    where: str


@dataclass(frozen=True)
class Optimization:
    """What a layer's ``layer.toml`` says of how it is to be optimized."""

    rules: tuple[str, ...] = ()
    """Rules to turn on besides those that are on by default."""
    skip_rules: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    """Paths, folders or patterns below the tree that no rule may take."""
    services: tuple[str, ...] = ()
    """botocore's services whose data stays; empty: all."""
    removes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The team's own rules: name -> the modules that each removes."""
    only: tuple[str, ...] = ()
    """Of the packages that these modules are in, only they stay, and what is loaded; empty: no such limit."""
    verify: str = ""
    """A command of the team's own that has to pass before and after, as a shell would split it."""
    verify_sources: str = ""
    """A digest of the files in the layer's folder that the command may read."""
    bytecode: str = "startup"
    """``off``, ``startup`` (what the declared imports load, then the rest up to the budget) or ``all``."""
    bytecode_budget_mb: int = 0
    """How many MiB bytecode may take; 0: what the declared imports load whatever it takes, and the rest up to 10."""


@dataclass(frozen=True)
class Exemption:
    """A team's word that something a scan finds does not matter, why, and until when."""

    id: str
    """An advisory by any of its names, or ``KIND:PATH`` of a suspicious file."""
    reason: str
    expires: date
    """The last day on which it holds."""
    where: str
    """The file that has it, for messages."""
    layer: str = ""
    """The layer that it is for; empty: all."""


@dataclass(frozen=True)
class Layer:
    """A folder in ``layers/`` and what its ``layer.toml`` says."""

    name: str
    requirements: tuple[Requirement, ...] = ()
    description: str = ""
    stack: str = "default"
    depends_on: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    """Runtimes the layer is for; empty: any."""
    architectures: tuple[str, ...] = ()
    """Architectures the layer is for; empty: any."""
    max_size_mb: int = 100
    limit_reason: str = ""
    allow_sdist: tuple[str, ...] = ()
    """Distributions (normalized names) that may be built from a pure-Python sdist."""
    imports: tuple[str, ...] = ()
    """Modules that have to import on Lambda; empty: every top-level one."""
    optimization: Optimization = field(default_factory=Optimization)
    exemptions: tuple[Exemption, ...] = ()
    """What of a security scan does not count for it."""
    has_own_code: bool = False

    @property
    def max_size(self) -> int:
        """The layer's size limit unzipped, in bytes (AWS's MB are MiB)."""
        return self.max_size_mb * MIB

    def why_not(self, target: Target) -> str:
        """Why the layer is not for ``target``; empty when it is."""
        if self.runtimes and target.runtime not in self.runtimes:
            return f"layers/{self.name}/layer.toml lists runtimes {', '.join(self.runtimes)}"
        if self.architectures and target.architecture not in self.architectures:
            return f"layers/{self.name}/layer.toml lists architectures {', '.join(self.architectures)}"
        return ""


class Layers(Mapping[str, Layer]):
    """All layers of a checkout and their graph, in an order where each comes after what it depends on.

    Raises ConfigurationError for a dependency that does not exist, that crosses stacks, or that closes a circle.
    """

    def __init__(self, layers: Iterable[Layer]) -> None:
        by_name = {layer.name: layer for layer in sorted(layers, key=lambda layer: layer.name)}
        for layer in by_name.values():
            for needed in layer.depends_on:
                where = f"layers/{layer.name}/layer.toml: depends_on"
                if needed not in by_name:
                    known = ", ".join(sorted(by_name))
                    raise ConfigurationError(f"{where} names {needed!r}, which is not a layer.", f"Layers: {known}.")
                if by_name[needed].stack != layer.stack:
                    raise ConfigurationError(
                        f"{where} names {needed!r} of the stack {by_name[needed].stack!r}; "
                        f"{layer.name} is of the stack {layer.stack!r}.",
                        "A function attaches layers of one stack: give both the same `stack`.",
                    )
        self._layers = {name: by_name[name] for name in _ordered(by_name)}

    def __getitem__(self, name: str) -> Layer:
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def dependencies(self, name: str) -> tuple[str, ...]:
        """The names of all layers that ``name`` needs, near and far, dependencies first."""
        found: set[str] = set()
        pending = list(self[name].depends_on)
        while pending:
            needed = pending.pop()
            if needed not in found:
                found.add(needed)
                pending.extend(self[needed].depends_on)
        return tuple(other for other in self if other in found)

    def with_dependencies(self, names: Iterable[str]) -> tuple[str, ...]:
        """``names`` and all they depend on, dependencies first."""
        wanted = set(names)
        for name in tuple(wanted):
            wanted.update(self.dependencies(name))
        return tuple(name for name in self if name in wanted)

    def why_not(self, name: str, target: Target) -> str:
        """Why a layer, or one that it depends on, is not for ``target``; empty when all are."""
        for other in (name, *self.dependencies(name)):
            reason = self[other].why_not(target)
            if reason:
                return reason if other == name else f"it depends on {other}, and {reason}"
        return ""

    def stack(self, stack: str, target: Target) -> tuple[Layer, ...]:
        """The layers of one stack that are for ``target``, dependencies first."""
        return tuple(layer for layer in self.values() if layer.stack == stack and not self.why_not(layer.name, target))

    def stacks(self, names: Iterable[str]) -> tuple[str, ...]:
        """The stacks that ``names`` belong to, each once."""
        return tuple(dict.fromkeys(self[name].stack for name in names))


def _ordered(layers: Mapping[str, Layer]) -> list[str]:
    """Names with dependencies first, otherwise by name; ConfigurationError when there is a circle."""
    ordered: list[str] = []
    open_: list[str] = []

    def visit(name: str) -> None:
        if name in ordered:
            return
        if name in open_:
            circle = " -> ".join([*open_[open_.index(name) :], name])
            raise ConfigurationError(
                f"layers/{name}/layer.toml: depends_on closes a circle: {circle}.",
                "A layer can't need itself: take one of these dependencies out.",
            )
        open_.append(name)
        for needed in sorted(layers[name].depends_on):
            visit(needed)
        open_.pop()
        ordered.append(name)

    for name in layers:
        visit(name)
    return ordered


@dataclass(frozen=True, order=True)
class Package:
    """One distribution at one version, with the SHA-256 of the files that may be installed for it."""

    name: str
    version: str
    hashes: tuple[str, ...] = ()
    sdist: bool = False
    """Whether the file is a source distribution that layerkit builds (``allow_sdist``)."""

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass(frozen=True)
class Lock:
    """What one layer installs for one target, and a digest of what that was worked out from."""

    layer: str
    target: Target
    inputs: str
    packages: tuple[Package, ...]
    provided: Mapping[str, str] = field(default_factory=dict)
    """What it needs and a layer in its ``depends_on`` carries: distribution -> that layer's name."""


@dataclass(frozen=True)
class Distribution:
    """A distribution as it lies in a tree."""

    name: str
    version: str
    hashes: tuple[str, ...]
    files: int
    size: int
    """Bytes unzipped."""


@dataclass(frozen=True)
class FileEntry:
    """One file of a layer: its path below the zip's root, what a zip needs of it, and its content's SHA-256."""

    path: str
    size: int
    executable: bool
    sha256: str
    link: str = ""
    """The target of a symbolic link (relative, inside the layer); empty for a file."""


@dataclass(frozen=True)
class Tree:
    """The unzipped content of a layer, below the checkout's root."""

    path: str
    sha256: str
    files: int
    size: int
    top: tuple[str, ...]
    """The names directly in it, sorted: a cheap sign that it is still what was built."""


@dataclass(frozen=True)
class Artifact:
    """The zip of a layer, below the checkout's root."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class OwnCode:
    """What of a tree came from the layer's ``src/``."""

    files: int
    size: int


@dataclass(frozen=True)
class RuleResult:
    """What one rule did to a layer: files and bytes that went, and what stays because something needs it."""

    rule: str
    outcome: str
    """``verified``, ``narrowed`` (some of it stays), ``rejected`` (all of it stays), ``unproven`` (safe without a
    proof), ``transferred`` (decided on the other architecture for the same distributions), ``nothing`` (it proposed
    nothing), or ``skipped`` (it could not be applied here)."""
    files: int
    size: int
    """Bytes that are gone."""
    restored: Mapping[str, str] = field(default_factory=dict)
    """Path -> the import that needs it, VERIFY, ANOTHER_FILE, or ``kept_by`` another layer."""
    note: str = ""
    """What else a person should know, such as why it proposed nothing."""
    removed: tuple[str, ...] = ()
    """The paths that went; of ``debug-symbols``, those that lost them."""


@dataclass(frozen=True)
class Optimized:
    """What optimizing a layer came to."""

    rules: tuple[RuleResult, ...] = ()
    modules: int = 0
    """How many modules outside of the rules' subjects import, before and after alike."""
    unverified: str = ""
    """Why nothing could be proven here, so that only what is safe or transferred was done; empty when all was."""
    late: tuple[str, ...] = ()
    """Modules whose import had not ended in time with everything in place, so that nothing is proven for them."""
    failing: tuple[str, ...] = ()
    """Modules that did not import with everything in place either, so that nothing is proven for them."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Distributions of the lock that a rule took as a whole, with their versions."""
    stubs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Where a stub stands for what is gone: path -> the layers that let it go, each with its rule."""
    bytecode_files: int = 0
    bytecode_size: int = 0
    interpreter: str = ""
    """The exact version that made the bytecode, as ``sys.version`` has it."""
    notes: tuple[str, ...] = ()
    """What of the options did nothing, such as a ``keep`` pattern that covers no path."""


def is_stub(module: str, stubs: Collection[str]) -> bool:
    """Whether one of ``stubs`` (their paths) stands in the place of a module (its dotted name): it is there to fail."""
    place = module.replace(".", "/")
    return f"{place}.py" in stubs or f"{place}/__init__.py" in stubs


@dataclass(frozen=True)
class Manifest:
    """What one build of a layer is. The stored form is documented in ``docs/manifest.md``."""

    layer: str
    target: Target
    inputs: str
    """SHA-256 over everything the build depends on: the input identity."""
    depends_on: Mapping[str, str]
    """The input identities of the layers it was locked against, by name."""
    distributions: tuple[Distribution, ...]
    own_code: OwnCode
    optimized: Optimized | None
    """None where optimization was skipped."""
    tree: Tree
    zip: Artifact
    tools: Mapping[str, str]
    notes: tuple[str, ...]
    """What a person should know of how the build came about."""
    built: str
    """UTC, ISO 8601: the only thing in here that differs between two builds of the same inputs."""


class Severity(Enum):
    """How much a finding matters: an ERROR fails the check, a WARNING is shown."""

    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """What a check found, as a value: the check's name, what it is about, and what to do."""

    check: str
    severity: Severity
    subject: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Skipped:
    """A check that could not run, and why: never a pass."""

    check: str
    subject: str
    reason: str
    hint: str = ""


@dataclass(frozen=True)
class Checked:
    """One check of one subject (a layer or a function): what it found, or that it could not run."""

    check: str
    subject: str
    findings: tuple[Finding, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    detail: str = ""
    """What was looked at, for a person: ``13 modules``."""
    seconds: float = 0.0
    recorded: bool = False
    """Whether the result is that of an earlier run over the same content."""

    @property
    def failed(self) -> bool:
        return any(finding.severity is Severity.ERROR for finding in self.findings)


@dataclass(frozen=True)
class Report:
    """All checks of one run."""

    checked: tuple[Checked, ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(finding for checked in self.checked for finding in checked.findings)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return tuple(skipped for checked in self.checked for skipped in checked.skipped)

    @property
    def failed(self) -> bool:
        return any(checked.failed for checked in self.checked)

    def of(self, subject: str) -> Report:
        """The part about one layer or function."""
        return Report(tuple(checked for checked in self.checked if checked.subject == subject))


@dataclass(frozen=True)
class Function:
    """A Lambda function that the template declares."""

    name: str
    """FunctionName, else the logical ID."""
    logical_id: str
    folder: str
    """CodeUri, below the template's folder."""
    handler: str
    """``app.lambda_handler``."""
    target: Target
    layers: tuple[str, ...]
    """The checkout's own layers that it attaches, in the order listed: a later one's file wins."""
    other_layers: tuple[str, ...] = ()
    """What else it attaches (ARNs, parameters): their content is not known here."""


@dataclass(frozen=True)
class LockChange:
    """How one lock differs after locking: distributions by name, with the version before and after (None: absent)."""

    layer: str
    target: Target
    reason: str
    """Why the lock was not current; empty when it was."""
    versions: Mapping[str, tuple[str | None, str | None]] = field(default_factory=dict)
    written: bool = False
