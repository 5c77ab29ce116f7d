#!/usr/bin/env python3
"""The guide's tool for sizes: the size checks of ``inv validate``, and ``inv report``."""

import argparse
import os
from pathlib import Path

RUN_TASK = Path(__file__).resolve().parent / "run-task.sh"
CHECKS = {"layers": "size", "functions": "function-size"}
"""The check of ``inv validate`` that is about the size of a target."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="size-validation.py", description="Check sizes against the limits, or report.")
    verbs = made.add_subparsers(dest="verb", metavar="VERB", required=True)
    validate = verbs.add_parser("validate", help="check sizes", description="Check sizes.", allow_abbrev=False)
    validate.add_argument("--target", required=True, choices=CHECKS, help="what to check")
    report = verbs.add_parser("report", help="report sizes", description="Report sizes.", allow_abbrev=False)
    report.add_argument("--format", default="text", choices=("text", "json"), help="default: %(default)s")
    return made


def main() -> None:
    asked = parser().parse_args()
    words = [f"--format={asked.format}"] if asked.verb == "report" else []
    if asked.verb == "validate":
        words = [f"--target={asked.target}", f"--only={CHECKS[asked.target]}"]
    # scripts/inv takes the place of this process, so that signals and exit codes are its own
    os.execv(RUN_TASK, [str(RUN_TASK), "size-validation.py", asked.verb, *words])  # noqa: S606  (no shell reads it)


if __name__ == "__main__":
    main()
