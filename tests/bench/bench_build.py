"""What a build of the checkout's layers costs, against what the guide does and against the bare parts of our own.

Whole processes, wall time, in interleaved rounds: each round runs every variant once, in an order that turns. All
caches are warm unless a variant says otherwise; what a variant leaves is removed outside of its time. Run it with
``inv bench build``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from uv import find_uv_bin

ROOT = Path(__file__).resolve().parent.parent.parent
TARGET = "python3.13-x86_64"

# Deflates what was installed, in as many threads as there are processors: the least that a zip costs.
DEFLATE = """
import os, sys, deflate
from concurrent.futures import ThreadPoolExecutor
files = [os.path.join(folder, name) for folder, _, names in os.walk(sys.argv[1]) for name in names]
def one(path):
    with open(path, "rb") as file:
        return len(deflate.deflate_compress(file.read(), 6))
with ThreadPoolExecutor(os.cpu_count()) as pool:
    print(sum(pool.map(one, files, chunksize=16)))
"""


@dataclass
class Variant:
    """One thing to measure: what to do before (not timed), and the commands that are timed."""

    name: str
    commands: Callable[[], list[list[str]]]
    prepare: Callable[[], None]
    environment: dict[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def run(self, cwd: Path) -> None:
        self.prepare()
        os.sync()  # what the variant before has written is not this one's to wait for
        environment = {**os.environ, **self.environment}
        started = time.perf_counter()
        for command in self.commands():
            done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise SystemExit(f"{self.name}: {command} failed:\n{done.stdout}{done.stderr}")
        self.seconds.append(time.perf_counter() - started)


class Bench:
    """A copy of the checkout's layers, and the variants over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = folder / "project"
        self.raw = folder / "raw"
        self.cache = folder / "cache"
        shutil.copytree(ROOT / "layers", self.project / "layers", ignore=shutil.ignore_patterns("python"))
        shutil.copy(ROOT / "invoke.yaml", self.project)
        self.layers = sorted(path.name for path in (self.project / "layers").iterdir())
        self.toggled = self.project / "layers" / "aws-utilities" / "requirements.txt"
        self.ours = {"LAYERKIT_ROOT": str(self.project), "LAYERKIT_CACHE_DIR": str(self.cache)}

    def variants(self) -> list[Variant]:
        build = ["build", "--skip-validation", "--skip-optimization"]
        alone = [*build, "--clean", "--layer", "aws-utilities"]
        return [
            Variant("pip install -t, a layer at a time (the guide)", self.pip, self.fresh_raw),
            Variant("uv pip install --target, copies", self.uv, self.fresh_raw),
            Variant("uv pip install --target, then deflate", lambda: [*self.uv(), self.deflate()], self.fresh_raw),
            Variant("inv build, compressed-file cache empty", self.inv(build), self.no_cache, self.ours),
            Variant("inv build, compressed-file cache warm", self.inv(build), self.fresh, self.ours),
            Variant("inv --list", self.inv(["--list"]), lambda: None, self.ours),
            Variant("inv build, nothing changed", self.inv(build), lambda: None, self.ours),
            Variant("inv build, one requirement of one layer changed", self.inv(build), self.toggle, self.ours),
            Variant("inv build --clean of that layer alone", self.inv(alone), self.settle, self.ours),
        ]

    def inv(self, words: list[str]) -> Callable[[], list[list[str]]]:
        return lambda: [[str(ROOT / "scripts" / "inv"), *words]]

    def pip(self) -> list[list[str]]:
        return [
            [sys.executable, "-m", "pip", "install", "--upgrade", "-r", str(self.requirements(layer)), "-t", into]
            for layer, into in self.into()
        ]

    def uv(self) -> list[list[str]]:
        options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--link-mode=copy", "--offline", "--quiet"]
        options += ["--no-python-downloads", f"--python={sys.executable}", "--python-version=3.13"]
        options += ["--python-platform=x86_64-manylinux_2_34"]
        return [
            [find_uv_bin(), "pip", "install", *options, "--target", into, "-r", str(self.lock(layer))]
            for layer, into in self.into()
        ]

    def deflate(self) -> list[str]:
        return [sys.executable, "-c", DEFLATE, str(self.raw)]

    def into(self) -> list[tuple[str, str]]:
        return [(layer, str(self.raw / layer)) for layer in self.layers]

    def requirements(self, layer: str) -> Path:
        return self.project / "layers" / layer / "requirements.txt"

    def lock(self, layer: str) -> Path:
        return self.project / "layers" / layer / "locks" / f"{TARGET}.txt"

    # ---- not timed ----

    def fresh_raw(self) -> None:
        shutil.rmtree(self.raw, ignore_errors=True)

    def fresh(self) -> None:
        """As in a new clone: nothing built."""
        for path in [self.project / "dist", self.project / ".layerkit"]:
            shutil.rmtree(path, ignore_errors=True)
        for layer in self.layers:
            shutil.rmtree(self.project / "layers" / layer / "python", ignore_errors=True)

    def no_cache(self) -> None:
        self.fresh()
        shutil.rmtree(self.cache, ignore_errors=True)

    def toggle(self) -> None:
        """Ask for another boto3 in one layer, and back the next time: its lock and its files change."""
        self.settle()
        text = self.toggled.read_text()
        self.toggled.write_text(
            text.replace("boto3<1.44\n", "boto3\n") if "<1.44" in text else "boto3<1.44\nbotocore\n"
        )

    def settle(self) -> None:
        """Everything built as the locks have it."""
        Variant("", self.inv(["build", "--skip-validation", "--skip-optimization"]), lambda: None, self.ours).run(
            self.project
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    (ROOT / ".layerkit").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / ".layerkit", prefix="bench-") as folder:
        bench = Bench(Path(folder))
        variants = bench.variants()
        for variant in variants:  # warms every cache; not counted
            variant.run(bench.project)
            variant.seconds.clear()
        for number in range(options.pairs):
            turned = variants[number % len(variants) :] + variants[: number % len(variants)]
            for variant in turned:
                variant.run(bench.project)
            print(f"round {number + 1} of {options.pairs} done", file=sys.stderr, flush=True)
    report(variants, options.json)


def report(variants: list[Variant], path: Path | None) -> None:
    median = {variant.name: statistics.median(variant.seconds) for variant in variants}
    print(f"{'seconds: median (lowest to highest)':62}")
    for variant in variants:
        low, high = min(variant.seconds), max(variant.seconds)
        print(f"  {variant.name:58} {median[variant.name]:7.2f}  ({low:.2f} to {high:.2f})")
    pip, _, floor, cold, warm, listed, nothing, changed, alone = [variant.seconds for variant in variants]
    ratios = {
        "cache empty, against uv and deflate (at most 1.3)": ratio(cold, floor),
        "pip, against cache empty (at least 5)": ratio(pip, cold),
        "pip, against cache warm (at least 8)": ratio(pip, warm),
        "nothing changed, against inv --list (at most 2)": ratio(nothing, listed),
        "one requirement changed (with its lock), against that layer alone": ratio(changed, alone),
    }
    print("ratios: median of the rounds' own")
    for name, value in ratios.items():
        print(f"  {name:66} {value:6.2f}")
    if path:
        seconds = {variant.name: variant.seconds for variant in variants}
        path.write_text(json.dumps({"schema": 1, "seconds": seconds, "ratios": ratios}, indent=2) + "\n")


def ratio(first: list[float], second: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(first, second, strict=True))


if __name__ == "__main__":
    main()
