"""The program behind ``scripts/inv`` and the ``layerkit`` command: Invoke's, with the exit codes of the contract.

Invoke answers its own parse errors with 1, which is kept for crashes here; it turns Ctrl-C into 1 as well.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

from invoke.exceptions import Exit, ParseError
from invoke.program import Program as InvokeProgram

from layerkit import __version__
from layerkit.errors import LayerkitError
from layerkit.processes import end_all

from .namespace import ns
from .settings import find_root
from .support import Flag

USAGE = 2


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
        _configuration(self.config.load_project)

    def parse_tasks(self) -> None:
        _usage(lambda: super(Program, self).parse_tasks())
        self._refuse_missing_values()

    def parse_cleanup(self) -> None:
        _usage(lambda: super(Program, self).parse_cleanup())

    def update_config(self, merge: bool = True) -> None:
        named = self.args.config.value
        if named and not os.path.exists(named):  # Invoke goes on as if nothing had been said
            raise Exit(f"layerkit: --config: {named} does not exist.", code=USAGE)
        _configuration(lambda: super(Program, self).update_config(merge))

    def execute(self) -> None:
        # The executor reads the environment for each task; a value of the wrong kind is better said before.
        trial = self.config.clone()
        _configuration(lambda: trial.load_collection(self.collection.configuration()))
        _configuration(trial.load_shell_env, "a setting in the environment (INVOKE_LAYERKIT_...)")
        super().execute()

    def _refuse_missing_values(self) -> None:
        """``--layer a --layer``: Invoke takes the second as if it were not there."""
        given = Counter(token.partition("=")[0] for token in self.argv[1:])
        for name, values in self._repeatable().items():
            if given[name] > values:
                raise Exit(f"layerkit: {name} needs a value each time it is given.", code=USAGE)

    def _repeatable(self) -> Counter[str]:
        counted: Counter[str] = Counter()
        for context in self.tasks:
            for argument in context.args.values():
                if isinstance(argument, Flag) and argument.kind is list:
                    counted[f"--{argument.names[0]}"] += len(argument.value)
        return counted


def _usage(parse: Callable[[], None]) -> None:
    """Invoke's parse errors, and its own exits with code 1, as one line and exit code 2."""
    try:
        parse()
    except ParseError as error:
        task = f" {error.context.name}" if error.context and error.context.name else ""
        raise Exit(f"layerkit: {error}\nSee: inv --help{task}", code=USAGE) from error
    except Exit as error:
        if error.message and error.code == 1:
            raise Exit(f"layerkit: {error.message}", code=USAGE) from error
        raise


def _configuration(load: Callable[[], None], what: str = "the configuration") -> None:
    """A configuration that can't be read is one line and exit code 2."""
    from invoke.vendor.yaml import YAMLError

    try:
        load()
    except (YAMLError, OSError, ValueError) as error:
        shown = " ".join(str(error).split())
        raise Exit(f"layerkit: {what} can't be read: {shown}", code=USAGE) from error


def main(argv: list[str] | None = None) -> int:
    """Run the tasks in ``argv`` (default: the process's own) and return the exit code."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        try:
            Program().run(argv)
        finally:
            sys.stdout.flush()
    except Interrupted as stop:
        end_all()
        print("layerkit: interrupted; nothing half-made is in place.", file=sys.stderr)
        return 128 + stop.number
    except BrokenPipeError:
        # Whoever read stdout has enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except LayerkitError as error:
        print(f"layerkit: {error}", file=sys.stderr)
        return error.exit_code
    except SystemExit as exit_:
        code: Any = exit_.code
        return code if isinstance(code, int) else 0 if code is None else 1
    return 0


def run() -> None:
    """The ``layerkit`` command of the wheel."""
    sys.exit(main())
