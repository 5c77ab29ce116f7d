"""What validating the checkout's layers costs: from nothing known, and when nothing has changed since.

Whole processes, wall time, in interleaved rounds. "Nothing known" has an empty cache of results and no record of what
was read, so that everything is read, imported and called again. Run it with ``inv bench validate``, after a build.
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
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=ROOT / ".layerkit", prefix="bench-") as folder:
        seconds: dict[str, list[float]] = {"nothing known": [], "unchanged": [], "inv --list": []}
        environment = {**os.environ, "LAYERKIT_CACHE_DIR": folder}
        for number in range(options.pairs + 1):
            shutil.rmtree(ROOT / ".layerkit" / "validated", ignore_errors=True)
            shutil.rmtree(folder)
            for name, words in (("nothing known", "validate"), ("unchanged", "validate"), ("inv --list", "--list")):
                started = time.perf_counter()
                command = [str(ROOT / "scripts" / "inv"), words]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                if done.returncode != 0:
                    raise SystemExit(f"{' '.join(command)} failed, so there is nothing to measure:\n{done.stdout}")
                if number:  # the first round warms the system's own caches
                    seconds[name].append(time.perf_counter() - started)
            print(f"round {number} of {options.pairs} done", file=sys.stderr, flush=True)
    print("seconds: median (lowest to highest)")
    for name, found in seconds.items():
        print(f"  {name:20} {statistics.median(found):6.2f}  ({min(found):.2f} to {max(found):.2f})")
    print("to reach: nothing known at most 15, unchanged at most 1")
    if options.json:
        options.json.write_text(json.dumps({"schema": 1, "seconds": seconds}, indent=2) + "\n")


if __name__ == "__main__":
    main()
