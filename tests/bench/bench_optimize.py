"""What optimizing the checkout's layers gains and costs, against the wheels as they are and against the guide's recipe.

Imports are timed in fresh processes of the target's interpreter, in interleaved rounds: each round runs every import
with every variant once, in an order that turns. A variant is one folder, as Lambda lays the layers over one another
in /opt/python. Run it with ``inv bench optimize``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from layerkit.archiving import write_zip
from layerkit.model import MIB
from layerkit.probing import lambda_environment
from layerkit.trees import sources
from tests.bench.bench_packages import NOT_SWEPT, ROOT, Swept, modules_outside_tests, note, sweep, target_python

LAYERS = ("core-data-science", "ml-libraries", "aws-utilities")
"""In the order in which a function lists them: on Lambda a file of a later one goes before."""

SERVICES = ("s3", "lambda", "dynamodb", "sts", "iam", "cloudformation", "logs", "events")
"""What the guide keeps of botocore's data."""

OPT_IN: dict[str, dict[str, Sequence[str]]] = {
    "core-data-science": {"rules": ["numpy", "pandas"]},
    "ml-libraries": {"rules": ["scipy", "scikit-learn"]},
    "aws-utilities": {"rules": ["boto3"], "services": SERVICES},
}
"""Keys of layer.toml that turn on the rules for the guide's packages."""

_CLIENT = 'boto3.client("s3", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")'
_SINGLE = {
    "pandas": "import pandas",
    "sklearn.ensemble": "import sklearn.ensemble",
    "S3 client": f"import boto3; {_CLIENT}",
}
IMPORTS = {**_SINGLE, "all three": "; ".join(_SINGLE.values())}

# Runs in the target's interpreter: seconds, and how many files of the tree were loaded without bytecode.
TIMED = """
import json, os, sys, time
sys.path.insert(0, sys.argv[1])
started = time.perf_counter()
exec(sys.argv[2])
seconds = time.perf_counter() - started
specs = [getattr(module, "__spec__", None) for module in list(sys.modules.values())]
specs = [spec for spec in specs if spec and spec.has_location and spec.origin.startswith(sys.argv[1])]
bare = [spec.name for spec in specs if spec.cached and not os.path.exists(spec.cached)]
print(json.dumps([seconds, len(bare)]))
"""

# ---- the guide's recipe ----


def guide_generic(tree: Path) -> None:
    """What the guide takes out of every layer: folders of tests, of documentation and of examples, and bytecode."""
    folders = {"tests", "test", "docs", "examples", "__pycache__"}
    _remove(path for path in tree.rglob("*") if path.is_dir() and path.name in folders)
    _remove(tree.rglob("*.pyc"))


def guide_packages(layer: str, tree: Path) -> None:
    """What the guide takes out of its own three layers besides."""
    if layer == "core-data-science":
        _remove(tree / path for path in ("pandas/io/tests", "pandas/plotting/tests", "numpy/doc", "numpy/f2py/tests"))
        _remove(tree.rglob("*.dist-info"))
    elif layer == "ml-libraries":
        unused = ("datasets", "experimental", "gaussian_process", "semi_supervised")
        _remove(tree / "sklearn" / name for name in unused)
        _keep_only(tree / "scipy", ("linalg", "sparse", "special", "stats", "_lib"))
    elif layer == "aws-utilities":
        _keep_only(tree / "botocore" / "data", SERVICES)


def _keep_only(folder: Path, words: Iterable[str]) -> None:
    """``ls | grep -v -E "(word|word)" | xargs rm -rf``."""
    _remove(path for path in folder.glob("[!.]*") if not any(word in path.name for word in words))


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


# ---- variants ----


@dataclass
class Variant:
    """A way to make the layers: their trees, their bytes, and what was measured with them together."""

    letter: str
    name: str
    trees: Path
    """A folder with a tree for each layer."""
    zipped: dict[str, int]
    """Bytes of each layer's zip."""
    built_in: float = 0.0
    """Seconds of the build that made it, where one did; wheels, and what was compressed before, are cached."""
    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in IMPORTS})
    without_bytecode: dict[str, int] = field(default_factory=dict)
    """How many files each import loads that have no bytecode."""
    fails: dict[str, str] = field(default_factory=dict)
    swept: Swept = NOT_SWEPT

    @property
    def label(self) -> str:
        return f"({self.letter}) {self.name}"

    @property
    def together(self) -> Path:
        """All layers in one folder, as a function finds them in /opt/python."""
        return self.trees / "opt" / "python"

    @property
    def unzipped(self) -> dict[str, int]:
        return {layer: sum(entry.size for entry in sources(self.trees / layer, "python")) for layer in LAYERS}

    def lay_over(self) -> None:
        for layer in LAYERS:
            shutil.copytree(self.trees / layer, self.together, copy_function=_link, dirs_exist_ok=True)

    def time(self, python: Path, name: str, home: Path) -> None:
        """Run one import in a fresh process; one that fails is not run again."""
        if name in self.fails:
            return
        done = subprocess.run(
            [python, "-I", "-S", "-B", "-c", TIMED, self.together, IMPORTS[name]],
            cwd=home,
            env=lambda_environment(str(home)),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            self.fails[name] = done.stderr.strip().splitlines()[-1]
        else:
            seconds, self.without_bytecode[name] = json.loads(done.stdout.splitlines()[-1])
            self.seconds[name].append(seconds)


def _link(source: str, to: str) -> None:
    Path(to).unlink(missing_ok=True)
    os.link(source, to)


@dataclass
class Proof:
    """Seconds of whole builds of all layers, each from an empty cache and from a full one."""

    cold: list[float] = field(default_factory=list)
    cached: list[float] = field(default_factory=list)
    plain_cold: list[float] = field(default_factory=list)
    plain_cached: list[float] = field(default_factory=list)

    @staticmethod
    def _less(whole: Sequence[float], plain: Sequence[float]) -> float:
        return statistics.median(one - other for one, other in zip(whole, plain, strict=True))

    @property
    def cold_alone(self) -> float:
        """What the optimization adds to a build from an empty cache: median of the rounds' own differences."""
        return self._less(self.cold, self.plain_cold)

    @property
    def cached_alone(self) -> float:
        return self._less(self.cached, self.plain_cached)


class Bench:
    """Copies of the checkout's layers in ``folder``, built in each way."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder = folder
        self.python = python
        self.cache = folder / "cache"

    def project(self, name: str, added: Mapping[str, Mapping[str, Sequence[str]]]) -> Path:
        """A checkout with the layers; ``added`` are keys for the layer.toml of each."""
        project = self.folder / name
        shutil.copytree(ROOT / "layers", project / "layers", ignore=shutil.ignore_patterns("python"))
        shutil.copy(ROOT / "invoke.yaml", project)
        for layer, keys in added.items():
            settings = project / "layers" / layer / "layer.toml"
            lines = [f"{key} = {json.dumps(list(values))}\n" for key, values in keys.items()]
            settings.write_text("".join(lines) + settings.read_text())
        return project

    def built(self, letter: str, name: str, project: Path, *options: str) -> Variant:
        """What a build in ``project`` makes, taken out of it."""
        started = time.perf_counter()
        document = json.loads(inv(project, self.cache, "build", "--skip-validation", "--json", *options))
        seconds = time.perf_counter() - started
        trees = self.folder / "trees" / letter
        trees.mkdir(parents=True)
        for layer in LAYERS:
            os.rename(project / "layers" / layer / "python", trees / layer)
        zipped = {entry["layer"]: entry["manifest"]["zip"]["size"] for entry in document["layers"]}
        note(f"({letter}) {name}: built")
        return Variant(letter, name, trees, zipped, seconds)

    def changed(self, letter: str, name: str, plain: Variant, change: Callable[[str, Path], None]) -> Variant:
        """``plain`` with each layer's tree changed, and zipped as ours are."""
        trees = self.folder / "trees" / letter
        zipped = {}
        for layer in LAYERS:
            tree = trees / layer
            shutil.copytree(plain.trees / layer, tree, copy_function=os.link)
            change(layer, tree)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                written = write_zip(self.folder / "layer.zip", sources(tree, "python"), pool=pool, cache=None)
            zipped[layer] = written.size
        return Variant(letter, name, trees, zipped)

    def compile(self, _layer: str, tree: Path) -> None:
        """Bytecode of everything: checked-hash, under the paths that the files have on Lambda."""
        options = ["-q", "-j", "2", "-p", "/opt/python", "--invalidation-mode", "checked-hash"]
        command: list[str | Path] = [self.python, "-I", "-S", "-m", "compileall", *options, "-s", tree, tree]
        # It ends with 1 where a file does not compile; some are there to be broken.
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)

    def guide(self, layer: str, tree: Path) -> None:
        guide_packages(layer, tree)
        guide_generic(tree)

    def variants(self) -> list[Variant]:
        project = self.project("project", {})
        plain = self.built("a", "plain, no bytecode", project, "--skip-optimization")
        made = [
            plain,
            self.changed("b", "plain, all bytecode", plain, self.compile),
            self.changed("c", "the guide's recipe", plain, self.guide),
            self.changed("c-", "the same without its parts for packages", plain, lambda _, tree: guide_generic(tree)),
            self.built("d", "ours by default", project),
            self.built("e", "ours with the opt-in rules", self.project("opt-in", OPT_IN)),
        ]
        for variant in made:
            variant.lay_over()
        return made

    def prove(self, rounds: int) -> Proof:
        """Whole builds, with optimization and without, each with a cache of its own; wheels are in uv's cache."""
        project = self.project("proof", {})
        proof = Proof()
        ways: list[tuple[str, list[str], list[float], list[float]]] = [
            ("whole", [], proof.cold, proof.cached),
            ("plain", ["--skip-optimization"], proof.plain_cold, proof.plain_cached),
        ]
        for number in range(rounds):
            for name, options, cold, cached in ways if number % 2 == 0 else ways[::-1]:
                cache = self.folder / f"cache-{name}"
                shutil.rmtree(cache, ignore_errors=True)
                for seconds in (cold, cached):
                    os.sync()
                    started = time.perf_counter()
                    inv(project, cache, "build", "--clean", "--skip-validation", *options)
                    seconds.append(time.perf_counter() - started)
            note(f"builds: round {number + 1} of {rounds} done")
        return proof

    def sweep(self, variants: Sequence[Variant]) -> None:
        """Two at once, as long as the machine has two processors."""
        modules = modules_outside_tests(variants[0].together)

        def one(variant: Variant) -> None:
            bare = not any(variant.together.glob("*/__pycache__"))
            scratch = self.folder / "sweeps" / variant.letter
            variant.swept = sweep(self.python, variant.together, modules, scratch, prefix=bare)
            note(f"modules of {variant.label}: swept")

        with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
            list(pool.map(one, variants))


def inv(project: Path, cache: Path, *words: str) -> str:
    """Run a task on ``project`` with an own cache; what it prints. SystemExit when it fails."""
    environment = {**os.environ, "LAYERKIT_ROOT": str(project), "LAYERKIT_CACHE_DIR": str(cache)}
    command = [str(ROOT / "scripts" / "inv"), *words]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"inv {' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    (ROOT / ".layerkit").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / ".layerkit", prefix="bench-") as folder:
        bench = Bench(Path(folder), target_python())
        variants = bench.variants()
        note("variants made")
        proof = bench.prove(min(3, options.pairs))
        bench.sweep(variants)
        home = Path(folder, "home")
        home.mkdir()
        runs = [(variant, name) for variant in variants for name in IMPORTS]
        for number in range(options.pairs + 1):
            turn = number % len(runs)
            for variant, name in [*runs[turn:], *runs[:turn]]:
                variant.time(bench.python, name, home)
            if number == 0:  # it has brought every file into memory, and found out which imports fail
                for variant, name in runs:
                    variant.seconds[name].clear()
            note(f"imports: round {number} of {options.pairs} done")
        report(variants, proof, options.json)


# ---- what was found ----


def ratio(first: Variant, second: Variant, name: str) -> float | None:
    """Median of the rounds' own ratios; None where one of the two does not import."""
    if name in first.fails or name in second.fails:
        return None
    pairs = zip(first.seconds[name], second.seconds[name], strict=True)
    return statistics.median(one / other for one, other in pairs)


def report(variants: Sequence[Variant], proof: Proof, path: Path | None) -> None:
    by_letter = {variant.letter: variant for variant in variants}
    plain, ours = by_letter["a"], by_letter["d"]
    show_sizes(variants)
    print(f"\n{'seconds of an import, median':46}" + "".join(f"{name:>18}" for name in IMPORTS))
    for variant in variants:
        medians = [
            "fails" if name in variant.fails else f"{statistics.median(variant.seconds[name]):.2f}" for name in IMPORTS
        ]
        print(f"  {variant.label:44}" + "".join(f"{text:>18}" for text in medians))
    print("files loaded without bytecode")
    for variant in variants:
        bare = [str(variant.without_bytecode.get(name, "fails")) for name in IMPORTS]
        print(f"  {variant.label:44}" + "".join(f"{text:>18}" for text in bare))
    for variant in variants:
        for name, error in variant.fails.items():
            print(f"  ({variant.letter}) {name} fails: {error}")
    print("ratios, median of the rounds' own")
    ratios = {
        f"({first})/({second})": {name: ratio(by_letter[first], by_letter[second], name) for name in IMPORTS}
        for first in "de"
        for second in ("a", "b", "c", "c-")
    }
    for label, found in ratios.items():
        shown = ["fails" if value is None else f"{value:.2f}" for value in found.values()]
        print(f"  {label:44}" + "".join(f"{text:>18}" for text in shown))
    show_modules(variants)
    print("\nbuilds of all layers, seconds: median (lowest to highest)")
    for label, seconds in (
        ("nothing cached but wheels", proof.cold),
        ("the same with --skip-optimization", proof.plain_cold),
        ("from the cache", proof.cached),
        ("the same with --skip-optimization", proof.plain_cached),
        ("with the opt-in rules, nothing proven yet", [by_letter["e"].built_in]),
    ):
        print(f"  {label:44}{statistics.median(seconds):8.2f}  ({min(seconds):.2f} to {max(seconds):.2f})")
    print(f"  {'so the proof costs: cold':44}{proof.cold_alone:8.2f}")
    print(f"  {'so the proof costs: from the cache':44}{proof.cached_alone:8.2f}")
    targets = reached(plain, ours, by_letter["e"], ratios, proof)
    print("\nto reach")
    for what, figure, met in targets:
        print(f"  {what:58}{figure:>20}  {'' if met is None else 'met' if met else 'not met'}")
    if path:
        document = {
            "schema": 1,
            "variants": [
                {
                    "variant": variant.label,
                    "unzipped": variant.unzipped,
                    "zipped": variant.zipped,
                    "built_in": variant.built_in,
                    "seconds": variant.seconds,
                    "fails": variant.fails,
                    "without_bytecode": variant.without_bytecode,
                    "modules": len(variant.swept.names),
                    "lost": plain.swept.lost(variant.swept),
                }
                for variant in variants
            ],
            "ratios": ratios,
            "builds": vars(proof),
            "targets": [{"target": what, "figure": figure, "met": met} for what, figure, met in targets],
        }
        path.write_text(json.dumps(document, indent=2) + "\n")


def show_sizes(variants: Sequence[Variant]) -> None:
    for title, sizes in (
        ("bytes unzipped", [variant.unzipped for variant in variants]),
        ("bytes zipped", [variant.zipped for variant in variants]),
    ):
        print(f"{title:46}" + "".join(f"{name:>18}" for name in (*LAYERS, "together")))
        for variant, found in zip(variants, sizes, strict=True):
            numbers = [*(found[layer] for layer in LAYERS), sum(found.values())]
            print(f"  {variant.label:44}" + "".join(f"{number:>18,}" for number in numbers))


def show_modules(variants: Sequence[Variant]) -> None:
    plain = variants[0].swept
    print(f"\nmodules outside of tests that import, of {len(plain.names) + len(plain.errors)}")
    for variant in variants:
        lost = plain.lost(variant.swept)
        print(f"  {variant.label:44}{len(variant.swept.names):>18,}  {len(lost)} of (a) no longer do")
        if variant.letter == "d":
            for name, why in lost.items():
                print(f"    {name}: {why}")
            for name in plain.renamed(variant.swept):
                print(f"    {name}: other public names")


def reached(
    plain: Variant, ours: Variant, opt_in: Variant, ratios: Mapping[str, Mapping[str, float | None]], proof: Proof
) -> list[tuple[str, str, bool | None]]:
    """The targets: what is to be reached, what was found, and whether that meets it (None: it can't be said)."""
    by_default, with_rules = sum(ours.unzipped.values()), sum(opt_in.unzipped.values())
    bare = max(ours.without_bytecode.values(), default=0)
    largest = max(ours.zipped.values())
    slowest = _worst(list(ratios["(d)/(b)"].values()))
    all_three = {base: ratios[f"(d)/({base})"]["all three"] for base in "ac"}
    lost = plain.swept.lost(ours.swept)
    found: list[tuple[str, str, bool | None]] = [
        ("by default at most 242,000,000 bytes", f"{by_default:,}", by_default <= 242_000_000),
        ("every file that the four imports load has bytecode", f"{bare} have none", bare == 0),
        ("each zip below 50 MiB", f"{largest / MIB:.1f} MiB", largest < 50 * MIB),
        ("with the opt-in rules at most 215,000,000 bytes", f"{with_rules:,}", with_rules <= 215_000_000),
        ("every import at most 1.1 times (b)", _shown(slowest), slowest is not None and slowest <= 1.1),
    ]
    for base, value in all_three.items():
        met: bool | None = value is not None and value <= 0.4
        shown = _shown(value)
        if base == "c" and value is None and "all three" not in ours.fails:
            shown, met = "(c) fails", None  # there is nothing to be quicker than
        found.append((f"all three imports at most 0.4 times ({base})", shown, met))
    return [
        *found,
        ("no module fewer than in (a)", f"{len(lost)} fewer", not lost),
        ("proven from cold within 60 s", f"{proof.cold_alone:.1f} s", proof.cold_alone <= 60),
        ("from the cache within 2 s", f"{proof.cached_alone:.1f} s", proof.cached_alone <= 2),
    ]


def _worst(values: Sequence[float | None]) -> float | None:
    """The highest; None where one is missing, which is worse than any."""
    return None if None in values else max(value for value in values if value is not None)


def _shown(value: float | None) -> str:
    return "fails" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
