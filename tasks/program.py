"""The program behind ``scripts/inv`` and the ``layerkit`` command: Invoke's, with the exit codes of the contract.

Invoke answers its own parse errors with 1, which is kept for crashes here; it turns Ctrl-C into 1 as well.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import date
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from invoke.exceptions import Exit, ParseError
from invoke.program import Program as InvokeProgram

from layerkit import __version__
from layerkit.errors import LayerkitError
from layerkit.processes import end_all, refuse_new, without_secrets

from .namespace import ns
from .settings import DEFAULTS, find_root
from .support import failure

USAGE = 2
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """SIGINT or SIGTERM; not KeyboardInterrupt, which Invoke would answer with exit code 1."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Program(InvokeProgram):
    """Invoke's program with our tasks, this checkout's invoke.yaml, and exit code 2 for usage errors."""

    def __init__(self) -> None:
        super().__init__(name="layerkit", namespace=ns, binary="inv", version=__version__)

    def parse_core(self, argv: list[str] | None) -> None:
        _usage(lambda: super(Program, self).parse_core(argv))

    def parse_collection(self) -> None:
        super().parse_collection()
        # With a namespace of its own, Invoke does not look for a project's configuration.
        self.config.set_project_location(str(find_root()))
        _configuration(self.config.load_project, files=self._files())

    def parse_tasks(self) -> None:
        _usage(self._parse_tasks)

    def _parse_tasks(self) -> None:
        try:
            super().parse_tasks()
        except ParseError as error:
            self._refuse_second_value(error)
            raise
        self._refuse_missing_values()

    def parse_cleanup(self) -> None:
        _usage(lambda: super(Program, self).parse_cleanup())

    def update_config(self, merge: bool = True) -> None:
        named = self.args.config.value
        if named and not os.path.exists(named):  # Invoke goes on as if nothing had been said
            raise _usage_error(f"--config: {named} does not exist.")
        _configuration(lambda: super(Program, self).update_config(merge), files=self._files())

    def execute(self) -> None:
        # The executor reads the environment for each task; a value of the wrong kind is better said before.
        trial = self.config.clone()
        _configuration(lambda: trial.load_collection(self.collection.configuration()), files=self._files())
        _configuration(trial.load_shell_env, "a setting in the environment (INVOKE_LAYERKIT_...)")
        super().execute()

    def _files(self) -> list[Path]:
        """The files that settings may come from."""
        named = [Path(self.args.config.value)] if self.args.config.value else []
        return [*named, *(find_root() / f"invoke.{suffix}" for suffix in ("yaml", "yml"))]

    def _refuse_second_value(self, error: ParseError) -> None:
        """``--layer a --layer b`` where one is all it takes: Invoke goes for the second as if it were a task."""
        found = re.fullmatch(r"No idea what '(.*)' is!", str(error))
        stranger = found[1] if found else ""
        words = self._words()
        for argument in error.context.args.values() if error.context else ():
            name = f"--{argument.names[0]}"
            again = f"{name}={stranger}" in words or (name, stranger) in pairwise(words)
            takes_one = argument.takes_value and argument.kind is not list
            if found and again and takes_one and argument.raw_value is not None:
                raise ParseError(f"{name} is given twice, and takes one value.", error.context)

    def _refuse_missing_values(self) -> None:
        """``--layer a --layer``: Invoke takes the second as if it were not there."""
        given = Counter(word.partition("=")[0] for word in self._words())
        values: Counter[str] = Counter()
        for context in self.tasks:
            for argument in context.args.values():
                if argument.takes_value:
                    several = argument.kind is list
                    values[f"--{argument.names[0]}"] += len(argument.value) if several else argument.got_value
        for name, count in values.items():
            if given[name] > count:
                raise _usage_error(f"{name} needs a value each time it is given, and some tasks take one only.")

    def _words(self) -> list[str]:
        """The command line, without what follows ``--``: nothing of ours reads that."""
        words = list(self.argv[1:])
        return words[: words.index("--")] if "--" in words else words


def _usage(parse: Callable[[], None]) -> None:
    """Invoke's parse errors, and its own exits with code 1, as one line and exit code 2."""
    try:
        parse()
    except ParseError as error:
        task = f" {error.context.name}" if error.context and error.context.name else ""
        raise _usage_error(f"{error}\nSee: inv --help{task}") from error
    except Exit as error:
        if error.message and error.code == 1:
            raise _usage_error(error.message) from error
        raise


def _usage_error(message: str) -> Exit:
    return Exit(without_secrets(f"layerkit: {message}"), code=USAGE)


def _configuration(load: Callable[[], None], what: str = "the configuration", files: Iterable[Path] = ()) -> None:
    """A configuration that can't be read is one line and exit code 2; ``files`` are those that may be the cause."""
    from invoke.vendor.yaml import YAMLError

    try:
        load()
    except (YAMLError, OSError, ValueError) as error:
        explained = next(filter(None, map(_wrong_setting, files)), "")
        shown = explained or f"{what} can't be read: {' '.join(str(error).split())}"
        raise _usage_error(shown) from error


def _wrong_setting(file: Path) -> str:
    """What a file of settings has wrong that Invoke's words leave open; empty where it is something else."""
    from invoke.vendor.yaml import YAMLError, safe_load

    shown = file.name if file.parent == find_root() else str(file)
    try:
        text = file.read_text(encoding="utf-8")
        document = safe_load(text)  # type: ignore[no-untyped-call]  # Invoke's copy has no types
    except (OSError, YAMLError):
        return ""
    except ValueError as error:  # YAML makes a date of what looks like one
        for number, line in enumerate(text.splitlines(), 1):
            for day in re.findall(r"(?<![\w-])\d{4}-\d\d?-\d\d?(?![\w-])", line):
                if not _is_day(day):
                    return f"{shown}:{number}: there is no day {day} ({error})."
        return f"{shown} can't be read: {error}."
    ours = document.get("layerkit") if isinstance(document, dict) else None
    for key, value in ours.items() if isinstance(ours, dict) else ():
        default = DEFAULTS.get(key)
        if isinstance(default, (dict, list)) and not isinstance(value, type(default)):
            kind = "a list" if isinstance(default, list) else "names with values"
            return f"{shown}: layerkit.{key} must be {kind}, not {value!r}."
    return ""


def _is_day(text: str) -> bool:
    try:
        date(*map(int, text.split("-")))
    except ValueError:
        return False
    return True


def main(argv: list[str] | None = None) -> int:
    """Run the tasks in ``argv`` (default: the process's own) and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # the names of files, and what others write, are in any language
            stream.reconfigure(errors="backslashreplace")
    ending = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal ending
        if not ending:  # the first one is obeyed; another would only disturb the clearing up
            ending = True
            refuse_new()
            raise Interrupted(number)

    for number in SIGNALS:
        signal.signal(number, interrupt)
    try:
        try:
            Program().run(argv)
        finally:
            sys.stdout.flush()
    except Interrupted as stop:
        end_all()
        # Python puts the system's handlers back while it shuts down, and one more Ctrl-C would be the end of it then.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        print("layerkit: interrupted; nothing half-made is in place.", file=sys.stderr)
        return 128 + stop.number
    except BrokenPipeError:  # whoever read stdout has enough
        _drop_stdout()
        return 128 + signal.SIGPIPE
    except (LayerkitError, OSError) as error:
        _drop_stdout()
        failed = failure(error)
        print(failed, file=sys.stderr)
        return failed.exit_code
    except SystemExit as exit_:
        code: Any = exit_.code
        return code if isinstance(code, int) else 0 if code is None else 1
    return 0


def _drop_stdout() -> None:
    """Python would complain once more when it flushes at exit what could not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def run() -> None:
    """The ``layerkit`` command of the wheel."""
    sys.exit(main())
