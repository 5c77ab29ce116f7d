#!/usr/bin/env python3
"""The guide's tool for one layer: ``optimize`` and ``validate`` are the tasks of scripts/inv of the same names."""

import argparse
import os
from pathlib import Path

RUN_TASK = Path(__file__).resolve().parent / "run-task.sh"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="layer-utils.py", description="Optimize or validate one layer.")
    verbs = made.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, what in (("optimize", "make a layer smaller"), ("validate", "check a layer")):
        flags = verbs.add_parser(verb, help=what, description=f"{what.capitalize()}.", allow_abbrev=False)
        flags.add_argument("--layer", required=True, metavar="LAYER", help="the name of a folder in layers/")
        flags.add_argument("--verbose", action="store_true", help="say more")
    return made


def main() -> None:
    asked = parser().parse_args()
    words = [asked.verb, f"--layer={asked.layer}", *(["--verbose"] if asked.verbose else [])]
    # scripts/inv takes the place of this process, so that signals and exit codes are its own
    os.execv(RUN_TASK, [str(RUN_TASK), "layer-utils.py", *words])  # noqa: S606  (a list; no shell reads it)


if __name__ == "__main__":
    main()
