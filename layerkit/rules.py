"""What may go from a layer: named proposals, each with why it should be safe. None is trusted: an oracle decides.

A rule looks at the files of distributions, by path, and names those that it would remove. The modules among them are
its subject: they need not import afterwards, unless a module outside of every subject imports them. The layer's own
code is never looked at, and ``keep`` patterns go before every rule.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from layerkit.errors import ConfigurationError
from layerkit.metadata import module_name
from layerkit.model import RUNTIME_BOTO3, VERIFY, Optimization, RuleResult, keeper
from layerkit.sensitive import secrets_in
from layerkit.trees import installed


@dataclass(frozen=True)
class Rule:
    """A proposal; ``finds`` gives the paths it would remove, from all paths of a tree and the tree itself."""

    name: str
    removes: str
    because: str
    finds: Callable[[Sequence[str], Path], Iterable[str]]
    default: bool = True
    stubs: bool = False
    """Whether a removed package is replaced by one that says why it is gone."""
    unproven: bool = False
    """Whether it is safe where nothing can be tried: it touches nothing that Python on Linux could load or read."""
    leaves_loaded: bool = False
    """Whether what other modules load stays without more ado: the import closure decides, not a failure."""
    whole: bool = False
    """Whether it takes distributions, metadata and all, and either everything that it proposes or nothing."""
    why_nothing: Callable[[Path], str] = lambda tree: ""
    """Why it proposes nothing for a tree, where that is worth saying."""


def _inside(folders: Iterable[str]) -> Callable[[Sequence[str], Path], Iterable[str]]:
    names = frozenset(folders)
    return lambda paths, tree: [path for path in paths if names.intersection(path.split("/")[:-1])]


def _ending(*endings: str) -> Callable[[Sequence[str], Path], Iterable[str]]:
    return lambda paths, tree: [path for path in paths if path.endswith(endings)]


def _tests(paths: Sequence[str], tree: Path) -> Iterable[str]:
    inside = _inside(("tests", "test"))(paths, tree)
    return [*inside, *(path for path in paths if PurePosixPath(path).name == "conftest.py")]


_DOCUMENTATION = frozenset(("doc", "docs", "examples", "example"))


def _documentation(paths: Sequence[str], tree: Path) -> Iterable[str]:
    # A folder of that name with modules in it may well be imported (botocore.docs is), so modules stay.
    inside = [path for path in _inside(_DOCUMENTATION)(paths, tree) if not path.endswith((".py", ".so"))]
    return [*_ending(".rst", ".md")(paths, tree), *inside]


def _private_keys(paths: Sequence[str], tree: Path) -> Iterable[str]:
    for path in paths:
        file = tree / path
        # Keys are small files that nothing imports; what has code beside a key is for the check `secrets` to tell.
        if path.endswith((".py", ".so")) or file.is_symlink() or file.stat().st_size > 1 << 20:
            continue
        if any(what == "a private key" for what, _ in secrets_in(file.read_bytes())):
            yield path


_BUILD_FILES = (
    *(".h", ".hpp", ".hh", ".pxd", ".pxi", ".pyx", ".pyx.tp", ".pxd.tp", ".c", ".c.src", ".cc", ".cpp", ".cu", ".cuh"),
    *(".f", ".f90", ".a", ".lib", ".pc", ".cmake", "/CMakeLists.txt", "/meson.build"),
)


def _modules(*names: str) -> Callable[[Sequence[str], Path], Iterable[str]]:
    """The files of modules and packages by dotted name."""
    wanted = _is_of(names)
    return lambda paths, tree: [path for path in paths if wanted(path)]


def _is_of(names: Iterable[str]) -> Callable[[str], bool]:
    """Whether a path belongs to one of the modules and packages with these dotted names."""
    modules = frozenset(name.replace(".", "/") for name in names)
    folders = tuple(f"{name}/" for name in modules)
    return lambda path: path.startswith(folders) or _module_of(path) in modules


def _module_of(path: str) -> str:
    """``pkg/mod.py`` and ``pkg/mod.abi3.so`` -> ``pkg/mod``; empty for what is no module."""
    folder, _, file = path.rpartition("/")
    name = module_name(file)
    return (f"{folder}/{name}" if folder else name) if name else ""


def _runtime_boto3(_paths: Sequence[str], tree: Path) -> Iterable[str]:
    if _lacking_of_boto3(tree):
        return ()
    rows = [path for found in installed(tree) if found.name in RUNTIME_BOTO3 for path in found.rows]
    return [path for path in rows if (tree / path).is_file()]


def _lacking_of_boto3(tree: Path) -> str:
    there = {found.name for found in installed(tree)}
    lacking = [name for name in RUNTIME_BOTO3 if name not in there]
    if not lacking:
        return ""
    return f"{', '.join(lacking)} is not in the layer, and {', '.join(RUNTIME_BOTO3)} go together or not at all"


BUILT_IN: tuple[Rule, ...] = (
    Rule(
        "tests",
        "folders called tests or test, and conftest.py",
        "a package's own tests run where it is developed; what other modules import of them stays",
        _tests,
    ),
    Rule(
        "documentation",
        "*.rst, *.md, and what is no module in folders called doc, docs, example or examples",
        "people read it, programs do not",
        _documentation,
    ),
    Rule(
        "build-files",
        "headers, Cython and C sources, static libraries, build descriptions",
        "they are for compiling against the package, and nothing compiles on Lambda",
        _ending(*_BUILD_FILES),
        unproven=True,
    ),
    Rule(
        "type-stubs",
        "*.pyi and py.typed",
        "type checkers read them; a package that reads its own at run time keeps them",
        _ending(".pyi", "/py.typed"),
    ),
    Rule(
        "foreign-platforms",
        "*.exe, *.dll, *.pyd, *.dylib, *.bat, *.ps1",
        "launchers and libraries of other systems can't be loaded on Linux",
        _ending(".exe", ".dll", ".pyd", ".dylib", ".bat", ".ps1"),
        unproven=True,
    ),
    Rule(
        "private-keys",
        "files that hold a private key, by content, unless they are code",
        "a key that everybody can download protects nothing, and test servers do not run on Lambda",
        _private_keys,
        unproven=True,
    ),
    Rule(
        "numpy",
        "numpy.f2py, numpy.distutils",
        "they compile Fortran and C, which Lambda does not",
        _modules("numpy.f2py", "numpy.distutils"),
        default=False,
        stubs=True,
    ),
    Rule(
        "pandas",
        "pandas.plotting",
        "plots need matplotlib, which a layer for data seldom carries",
        _modules("pandas.plotting"),
        default=False,
        stubs=True,
    ),
    Rule(
        "scipy",
        "scipy.datasets, scipy.io.matlab, scipy.fftpack, scipy.odr, scipy.misc",
        "data sets are downloaded, and the others are superseded or for files of other programs",
        _modules("scipy.datasets", "scipy.io.matlab", "scipy.fftpack", "scipy.odr", "scipy.misc"),
        default=False,
        stubs=True,
    ),
    Rule(
        "scikit-learn",
        "sklearn.datasets, sklearn.experimental, sklearn.gaussian_process, sklearn.semi_supervised",
        "the guide's list: sample data, and modules that few models use",
        _modules("sklearn.datasets", "sklearn.experimental", "sklearn.gaussian_process", "sklearn.semi_supervised"),
        default=False,
        stubs=True,
    ),
    Rule(
        "boto3",
        "boto3.ec2, and the examples and resource data of boto3",
        "clients need none of it; whoever uses boto3.resource does",
        lambda paths, tree: [
            path for path in paths if path.startswith(("boto3/data/", "boto3/examples/", "boto3/ec2/"))
        ],
        default=False,
        stubs=True,
    ),
    Rule(
        "runtime-boto3",
        f"{', '.join(RUNTIME_BOTO3)}, together or not at all",
        "every Python runtime brings its own; which version, AWS decides, and changes without being asked",
        _runtime_boto3,
        default=False,
        whole=True,
        why_nothing=_lacking_of_boto3,
    ),
)

_SERVICE_ROOT = "botocore/data/"
_ALWAYS = frozenset(("sts", "sso", "sso-oidc", "signin"))
"""Services that getting credentials may need, whatever a function uses."""


def services_rule(services: Sequence[str]) -> Rule:
    """botocore's service data, but for ``services``, those that credentials need, and the files of all services."""
    kept = {*services, *_ALWAYS}

    def finds(paths: Sequence[str], _tree: Path) -> Iterable[str]:
        for path in paths:
            parts = path.split("/")
            if path.startswith(_SERVICE_ROOT) and len(parts) > 3 and parts[2] not in kept:
                yield path

    listed = ", ".join(services)
    because = "a client of a service reads its own data only"
    return Rule("services", f"botocore's data of all services but {listed}", because, finds, default=False)


def check_services(services: Sequence[str], paths: Iterable[str]) -> None:
    """ConfigurationError for a service that the botocore among ``paths`` does not have."""
    known = {path.split("/")[2] for path in paths if path.startswith(_SERVICE_ROOT) and path.count("/") > 2}
    for service in services:
        if known and service not in known:
            raise ConfigurationError(
                f"layer.toml: services: botocore has no service called {service!r}.",
                "The names are those of boto3.client(NAME).",
            )


def only_rule(modules: Sequence[str]) -> Rule:
    """Of the packages that ``modules`` are in, all but these and what anything loads."""
    tops = {name.partition(".")[0] for name in modules}
    wanted = _is_of(modules)
    parents = {f"{above}/__init__.py" for name in modules for above in _above(name)}

    def finds(paths: Sequence[str], _tree: Path) -> Iterable[str]:
        for path in paths:
            top = path.partition("/")[0]
            if (top in tops or _module_of(path) in tops) and not wanted(path) and path not in parents:
                yield path

    return Rule(
        "only",
        f"of {', '.join(sorted(tops))} all but {', '.join(modules)} and what is loaded",
        "layer.toml names the modules that are used; what these or others load, and its data, stays",
        finds,
        default=False,
        stubs=True,
        leaves_loaded=True,
    )


def _above(module: str) -> list[str]:
    """``a.b.c`` -> ``a``, ``a/b``: the folders of the packages that it is in."""
    parts = module.split(".")[:-1]
    return ["/".join(parts[: number + 1]) for number in range(len(parts))]


def check_only(modules: Sequence[str], paths: Iterable[str]) -> None:
    """ConfigurationError for a module of ``only`` that is not among ``paths``."""
    there = {_module_of(path) for path in paths}
    for name in modules:
        module = name.replace(".", "/")
        if module not in there and f"{module}/__init__" not in there:
            raise ConfigurationError(
                f"layer.toml: only: the layer has no module {name!r}.",
                "Name modules of its distributions as an import does, such as 'sklearn.ensemble'.",
            )


_BY_SETTING = ("services", "only", "debug-symbols")
"""Rules that are made from settings, or are none of proposals; they can be skipped by name as well."""


def rules_for(options: Optimization) -> tuple[Rule, ...]:
    """The rules in force for a layer, in the order in which they claim files; ConfigurationError for a stranger."""
    known = {rule.name: rule for rule in BUILT_IN}
    for name in (*options.rules, *options.skip_rules):
        if name not in known and name not in options.removes and name not in _BY_SETTING:
            names = ", ".join([*known, "debug-symbols", *options.removes])
            raise ConfigurationError(f"there is no rule called {name!r}.", f"Rules: {names}.")
    chosen = [rule for rule in BUILT_IN if rule.default or rule.name in options.rules]
    if options.services:
        chosen.append(services_rule(options.services))
    if options.only:
        chosen.append(only_rule(options.only))
    for name, modules in options.removes.items():
        chosen.append(
            Rule(name, ", ".join(modules), "layer.toml says so", _modules(*modules), default=False, stubs=True)
        )
    return tuple(rule for rule in chosen if rule.name not in options.skip_rules)


def kept(path: str, patterns: Sequence[str]) -> bool:
    """Whether a ``keep`` pattern covers ``path``: a path, a folder, or a pattern with ``*``."""
    return any(
        path == pattern or path.startswith(f"{pattern.rstrip('/')}/") or fnmatchcase(path, pattern)
        for pattern in patterns
    )


def never(path: str) -> bool:
    """What no rule may take: metadata of distributions, and bundles of certificates."""
    return path.partition("/")[0].endswith((".dist-info", ".data")) or PurePosixPath(path).name == "cacert.pem"


def propose(rules: Sequence[Rule], paths: Sequence[str], tree: Path, keep: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What each rule would remove, by name; a path that several would remove is the first one's."""
    claimed: set[str] = set()
    found = {}
    eligible = [path for path in paths if not never(path) and not kept(path, keep)]
    for rule in rules:
        own = set(rule.finds(paths if rule.whole else eligible, tree))
        if rule.whole and any(kept(path, keep) for path in own):
            own = set()
        found[rule.name] = tuple(sorted(own - claimed))
        claimed |= own
    return found


def needed_by(reason: str) -> str:
    """Why a path stays, for a person: ``reason`` is what ``RuleResult.restored`` has of it."""
    if reason == VERIFY:
        return "the command of `verify` needs it"
    return (
        f"the layer {layer}, which carries it too, keeps it"
        if (layer := keeper(reason))
        else f"import {reason} needs it"
    )


def explain(path: str, tree: Path, options: Optimization, results: Sequence[RuleResult]) -> str:
    """Why a file is in a built tree or not: ``results`` are those of its build."""
    for result in results:
        if path in result.restored:
            return f"it stays, though the rule {result.rule} proposes it: {needed_by(result.restored[path])}"
    if (tree / path).exists():
        if kept(path, options.keep):
            return "it stays: a keep pattern in layer.toml covers it"
        return "it stays: no rule may take it" if never(path) else "it is there: no rule in force proposes it"
    # What went by content can't be told from what never was there.
    claiming = [rule for rule in rules_for(options) if rule.name != "private-keys" and path in rule.finds([path], tree)]
    if claiming:
        return f"it is not there: the rule {claiming[0].name} takes files like it"
    return "it is not there, and no rule takes files like it"


def stub(place: str, by: Mapping[str, str]) -> str:
    """The source that stands for a removed module at ``place``: importing it says who removed it, and the way back.

    ``by`` are the layers that let it go, each with its rule. What one of them keeps is in all that carry it.
    """
    package = place.endswith("/__init__.py")
    path = place.removesuffix("/__init__.py") if package else place.removesuffix(".py")
    module = path.replace("/", ".")
    files = " or ".join(f"layers/{layer}/layer.toml" for layer in sorted(by))
    message = (
        f"No module named {module!r}: {_listed('rule', by.values())} left it out of {_listed('layer', by)}. "
        f"To get it back, add to {files}: keep = [{json.dumps(path if package else f'{path}.*')}]"
    )
    return f"raise ModuleNotFoundError({message!r}, name={module!r})\n"


def _listed(what: str, names: Iterable[str]) -> str:
    """``the layer 'a'``, ``the layers 'a' and 'b'``, ``the layers 'a', 'b' and 'c'``."""
    *first, last = [repr(name) for name in sorted(set(names))]
    return f"the {what}s {', '.join(first)} and {last}" if first else f"the {what} {last}"


def stub_path(path: str) -> str:
    """Where the stub of a removed module stands; empty for what is none, or can't be imported by name."""
    module = _module_of(path)
    return "" if not module or PurePosixPath(module).name == "__main__" else f"{module}.py"


def stubs_for(rules: Sequence[Rule], gone: Mapping[str, Iterable[str]], present: Collection[str]) -> dict[str, str]:
    """Where stubs stand for what rules with ``stubs`` removed altogether: place -> rule.

    ``gone`` are the removed paths by rule, ``present`` all that were there. A stub stands for the topmost removed
    package or module, and never in the place of a file that stays.
    """
    made = {}
    for rule in rules:
        paths = set(gone.get(rule.name, ()))
        if not rule.stubs:
            continue
        for path in sorted(paths):
            place = stub_path(path)
            if not place or (place in present and place not in paths):
                continue
            module = place.removesuffix("/__init__.py") if place.endswith("/__init__.py") else place.removesuffix(".py")
            above = module.rpartition("/")[0]
            if not any(f"{above}/__init__{ending}" in paths for ending in (".py", ".so")):
                made[place] = rule.name
    return made
