"""What may go from a layer: named proposals, each with why it should be safe. None is trusted: an oracle decides.

A rule looks at the files of distributions, by path, and names those that it would remove. The modules among them are
its subject: they need not import afterwards, unless a module outside of every subject imports them. The layer's own
code is never looked at, and ``keep`` patterns go before every rule.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from layerkit.errors import ConfigurationError
from layerkit.metadata import module_name
from layerkit.model import ANOTHER_FILE, RUNTIME_BOTO3, SYMBOLS, VERIFY, Optimization, Optimized, keeper
from layerkit.sensitive import secrets_in
from layerkit.trees import installed, link_targets


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
    unproven: Callable[[str], bool] | None = None
    """Which of its paths are safe to take where nothing can be tried: those that nothing which runs on Linux loads or
    reads. None: not one."""
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
_DOCUMENTS = re.compile(
    r"(README|CHANGES|CHANGELOG|HISTORY|NEWS|CONTRIBUTING|AUTHORS|CREDITS|INSTALL|TODO|SECURITY|CODE_OF_CONDUCT"
    r"|RELEASES?)(?![a-z]).*\.(md|rst)",
    re.IGNORECASE,
)


def _documentation(paths: Sequence[str], tree: Path) -> Iterable[str]:
    # A folder of that name with modules in it may well be imported (botocore.docs is), so modules stay. Elsewhere a
    # text may be data (a template of a prompt), unless its name says what it is.
    inside = [path for path in _inside(_DOCUMENTATION)(paths, tree) if not path.endswith((".py", ".so"))]
    return [*inside, *(path for path in paths if _DOCUMENTS.fullmatch(PurePosixPath(path).name))]


def _type_stubs(paths: Sequence[str], tree: Path) -> Iterable[str]:
    # One without a module beside it is data: of a type checker, or of what completes code.
    modules: dict[str, frozenset[str]] = {}
    for path in paths:
        folder, _, file = path.rpartition("/")
        if file.endswith(".pyi"):
            if folder not in modules:
                modules[folder] = _modules_in(tree / folder)
            if file.removesuffix(".pyi") in modules[folder]:
                yield path
        elif path.endswith("/py.typed"):
            yield path


def _modules_in(folder: Path) -> frozenset[str]:
    """The names of the modules and packages right below a folder."""
    with os.scandir(folder) as entries:
        return frozenset(
            (entry.name if any(map(module_name, os.listdir(entry.path))) else "")
            if entry.is_dir()
            else module_name(entry.name)
            for entry in entries
        )


def _private_keys(paths: Sequence[str], tree: Path) -> Iterable[str]:
    for path in paths:
        file = tree / path
        # Keys are small files that nothing imports; what has code beside a key is for the check `secrets` to tell.
        if path.endswith((".py", ".so")) or file.is_symlink() or file.stat().st_size > 1 << 20:
            continue
        if any(what == "a private key" for what, _ in secrets_in(file.read_bytes())):
            yield path


_BUILD_ONLY = (
    *(".pxd", ".pxi", ".pyx", ".pyx.tp", ".pxd.tp", ".a", ".lib", ".pc", ".cmake"),
    *("/CMakeLists.txt", "/meson.build"),
)
"""What only compilers and linkers read. A header or a source may be read when a module is called: cffi does."""

_BUILD_FILES = (
    *_BUILD_ONLY,
    *(".h", ".hpp", ".hh", ".c", ".c.src", ".cc", ".cpp", ".cu", ".cuh", ".f", ".f90"),
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
        "README, CHANGES and their like as *.md or *.rst, and what is no module in folders called doc, docs, example "
        "or examples",
        "people read it, programs do not",
        _documentation,
    ),
    Rule(
        "build-files",
        "headers, Cython and C sources, static libraries, build descriptions",
        "they are for compiling against the package, and nothing compiles on Lambda",
        _ending(*_BUILD_FILES),
        unproven=lambda path: path.endswith(_BUILD_ONLY),
    ),
    Rule(
        "type-stubs",
        "*.pyi beside the module that they describe, and py.typed",
        "type checkers read them; a package that reads its own at run time keeps them",
        _type_stubs,
    ),
    Rule(
        "foreign-platforms",
        "*.exe, *.dll, *.pyd, *.dylib, *.bat, *.ps1",
        "launchers and libraries of other systems can't be loaded on Linux",
        _ending(".exe", ".dll", ".pyd", ".dylib", ".bat", ".ps1"),
        unproven=lambda path: True,
    ),
    Rule(
        "private-keys",
        "files that hold a private key, by content, unless they are code",
        "a key that everybody can download protects nothing, and test servers do not run on Lambda",
        _private_keys,
        unproven=lambda path: True,
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


def check_modules(options: Optimization, paths: Iterable[str]) -> None:
    """ConfigurationError for a module of ``only``, or of a team's own rule, that is not among ``paths``."""
    named = [("only", "only", module) for module in options.only]
    named += [(rule, f"remove.{rule}", module) for rule, modules in options.removes.items() for module in modules]
    there = {_module_of(path) for path in paths} if named else set()
    for rule, key, name in named:
        place = name.replace(".", "/")
        if rule not in options.skip_rules and not any(f"{one}/".startswith(f"{place}/") for one in there):
            raise ConfigurationError(
                f"layer.toml: {key}: the layer has no module {name!r}.",
                "Name modules of its distributions as an import does, such as 'sklearn.ensemble'.",
            )


_EXAMPLES = {"services": 'services = ["s3"]', "only": 'only = ["sklearn.ensemble"]'}
"""Rules that are made from a list in layer.toml, and how that is written."""


def rule_names(options: Optimization) -> tuple[str, ...]:
    """The rules that a layer can have on or off by name; what needs a list is among them where there is one."""
    listed = [*(["services"] if options.services else []), *(["only"] if options.only else [])]
    return (*(rule.name for rule in BUILT_IN), SYMBOLS, *listed, *options.removes)


def rules_for(options: Optimization) -> tuple[Rule, ...]:
    """The rules in force for a layer, in the order in which they claim files.

    ConfigurationError for a rule that does not exist, that is both on and skipped, or that lacks its list.
    """
    names = rule_names(options)
    for name in (*options.rules, *options.skip_rules):
        if name not in names and name not in _EXAMPLES:
            known = ", ".join(dict.fromkeys([*names, *_EXAMPLES]))
            raise ConfigurationError(f"there is no rule called {name!r}.", f"Rules: {known}.")
    for name in options.rules:
        if name in options.skip_rules:
            raise ConfigurationError(f"the rule {name!r} is both on and skipped.", "Name it once.")
        if name not in names:
            raise ConfigurationError(
                f"the rule {name!r} needs a list of what stays, and layer.toml has none.",
                f"Write it there, such as: {_EXAMPLES[name]}",
            )
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


_LICENCES = re.compile(r"(LICEN[CS]E|COPYING|NOTICE)S?(?![a-z]).*", re.IGNORECASE)


def never(path: str) -> bool:
    """What no rule may take: metadata of distributions, bundles of certificates, and licences."""
    name = PurePosixPath(path).name
    if path.partition("/")[0].endswith((".dist-info", ".data")) or name == "cacert.pem":
        return True
    return bool(_LICENCES.fullmatch(name)) and not module_name(name)


def unused(patterns: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Of ``keep`` patterns, those that cover none of ``paths``."""
    return [pattern for pattern in patterns if not any(kept(path, [pattern]) for path in paths)]


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
    if reason == ANOTHER_FILE:
        return "it is another file on the architecture where that was decided"
    layer = keeper(reason)
    return f"the layer {layer}, which carries it too, keeps it" if layer else f"import {reason} needs it"


def explain(path: str, tree: Path, keep: Sequence[str], optimized: Optimized) -> str:
    """What became of a path, or of all below it, in a build: of its ``tree`` and of what was recorded of it.

    ``keep`` are the patterns of its layer.toml; what a build was made with is not in its record.
    """
    there = os.path.lexists(tree / path)
    taking = [rule for rule in optimized.rules if rule.rule != SYMBOLS]
    for rule in taking:
        if path in rule.removed:
            stub = _stub_over(path, optimized)
            stands = f"; a stub stands in its place, {stub}" if stub else ""
            # Alone it would come back below a stub, and could not be imported.
            return f"the rule {rule.rule} took it{stands}. {_way_back(_covering(stub) if stub else path)}"
    if path in optimized.stubs:
        rules = _listed("rule", optimized.stubs[path].values())
        return f"it is a stub: {rules} took the module. {_way_back(_covering(path))}"
    inside = [(rule.rule, sum(one.startswith(f"{path}/") for one in rule.removed)) for rule in taking]
    went = [f"{number} went by the rule {name}" for name, number in inside if number]
    if went or (tree / path).is_dir():
        files = sum(len(names) for folder, _, names in os.walk(tree / path) if not folder.endswith("__pycache__"))
        stay = sum(one.startswith(f"{path}/") for rule in taking for one in rule.restored)
        needed = [f"{stay} stay though a rule proposes them"] if stay else []
        return f"a folder: {', '.join([f'{files} files are there', *went, *needed])}"
    if not there:
        return "it is not there, and never was: neither the build nor any of its rules knows it"
    return "; ".join([_why_there(path, tree, keep, optimized), *_of_symbols(path, optimized)])


def _stub_over(path: str, optimized: Optimized) -> str:
    """The stub that stands for a removed path or for a package that it was in; empty for none."""
    folders = [f"{folder}/__init__.py" for folder in PurePosixPath(path).parents]
    return next((place for place in (stub_path(path), *folders) if place in optimized.stubs), "")


def _way_back(pattern: str) -> str:
    return f"To get it back, add to layer.toml: keep = [{json.dumps(pattern)}]"


def _covering(place: str) -> str:
    """The pattern for ``keep`` that covers all of a module, by the path of its stub."""
    package = place.removesuffix("/__init__.py")
    return package if package != place else f"{place.removesuffix('.py')}.*"


def _why_there(path: str, tree: Path, keep: Sequence[str], optimized: Optimized) -> str:
    for rule in optimized.rules:
        if rule.rule != SYMBOLS and path in rule.restored:
            return f"it stays, though the rule {rule.rule} proposes it: {needed_by(rule.restored[path])}"
    if "__pycache__" in path.split("/"):
        return "it is there: bytecode, added by the build"
    if kept(path, keep):
        return "it stays: a keep pattern in layer.toml covers it"
    if never(path):
        return "it stays: no rule may take it"
    if kept(path, sorted(link_targets(tree))):
        return "it stays: a link of the layer's own code leads to it"
    return "it is there: no rule of the build proposes it"


def _of_symbols(path: str, optimized: Optimized) -> list[str]:
    found = []
    for rule in optimized.rules:
        if rule.rule == SYMBOLS and path in rule.removed:
            found.append("its debug symbols went")
        if rule.rule == SYMBOLS and path in rule.restored:
            found.append(f"its debug symbols stay: {needed_by(rule.restored[path])}")
    return found


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
        f"To get it back, add to {files}: keep = [{json.dumps(_covering(place))}]"
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
