"""What every task shares: the decorator, its outcome, and how errors become exits.

A task's body returns an ``Outcome``: a document for ``--json``, a function that shows the same to a person, and an
exit code. The decorator prints one or the other. An error of ours, or of the system (a full disk, a file that can't be
written), becomes its message on stderr and its exit code.
"""

from __future__ import annotations

import functools
import json as json_module
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from invoke.context import Context
from invoke.exceptions import Exit, ParseError
from invoke.parser.argument import Argument
from invoke.tasks import Task
from invoke.tasks import task as invoke_task

from layerkit.errors import ExternalError, LayerkitError
from layerkit.processes import without_secrets


@dataclass(frozen=True)
class Outcome:
    """What a task has to say: as a JSON document, for a person, and as an exit code."""

    document: Mapping[str, Any]
    show: Callable[[], None]
    exit_code: int = 0


@dataclass(frozen=True)
class Failure:
    """An error as it leaves the program: free of credentials, and with its exit code."""

    message: str
    hint: str
    exit_code: int

    def __str__(self) -> str:
        return f"layerkit: {self.message}\n{self.hint}" if self.hint else f"layerkit: {self.message}"


def failure(error: LayerkitError | OSError) -> Failure:
    """What to say of an error; one of the system is named with the paths that it is about."""
    if isinstance(error, OSError):
        paths = [os.fsdecode(path) for path in (error.filename, error.filename2) if isinstance(path, (str, bytes))]
        where = f"{' -> '.join(paths)}: " if paths else ""
        error = ExternalError(f"{where}{error.strerror or error}.")
    return Failure(without_secrets(error.message), without_secrets(error.hint), error.exit_code)


class Flag(Argument):
    """A flag whose mistakes read well: Invoke's own message would show the object, or be a traceback."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.kind is list:
            # Invoke starts a list with an empty one, so it can't tell `--layer` without a value from no `--layer` at
            # all, and the first would mean "all layers". Without a raw value to start with, its own check works.
            self.raw_value = None

    def __repr__(self) -> str:
        return f"--{self.names[0]}"

    def set_value(self, value: Any, cast: bool = True) -> None:
        try:
            super().set_value(value, cast)
        except ValueError:
            raise ParseError(f"{self} needs a whole number, not {value!r}.") from None


class LayerTask(Task[Callable[..., Any]]):
    """A task with no accidental one-letter flags, and with flags of our own class."""

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        described = dict(self.help)
        arguments = super().get_arguments(ignore_unknown_help)
        self.help = described  # Invoke empties it, and a second look at the same task would find no help
        return [
            Flag(
                names=argument.names,
                kind=argument.kind,
                default=argument.default,
                help=argument.help,
                attr_name=argument.attr_name,
                positional=argument.positional,
                optional=argument.optional,
            )
            for argument in arguments
        ]


def task(**options: Any) -> Callable[[Callable[..., Outcome | None]], LayerTask]:
    """``@task(help=..., iterable=...)`` for a body that returns an Outcome; with a ``json`` parameter it reports."""

    def wrap(body: Callable[..., Outcome | None]) -> LayerTask:
        @functools.wraps(body)
        def run(ctx: Context, *args: Any, **flags: Any) -> None:
            as_json = bool(flags.get("json"))
            with _one_document() if as_json else _plain() as write:
                try:
                    outcome = body(ctx, *args, **flags)
                except BrokenPipeError:  # no failure: whoever read stdout has enough
                    raise
                except (LayerkitError, OSError) as error:
                    failed = failure(error)
                    if as_json:
                        shown = {"message": failed.message, "hint": failed.hint, "exit_code": failed.exit_code}
                        write(json_module.dumps({"schema": 1, "error": shown}, indent=2) + "\n")
                    raise Exit(str(failed), code=failed.exit_code) from error
                if outcome is None:
                    return
                if as_json:
                    write(json_module.dumps(outcome.document, indent=2) + "\n")
                else:
                    outcome.show()
            if outcome.exit_code:
                raise Exit(code=outcome.exit_code)

        made: LayerTask = invoke_task(klass=LayerTask, auto_shortflags=False, **options)(run)
        return made

    return wrap


@contextmanager
def _plain() -> Iterator[Callable[[str], None]]:
    yield lambda _: None


@contextmanager
def _one_document() -> Iterator[Callable[[str], None]]:
    """Keep the real stdout for one document: what this process and its children print meanwhile goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield lambda text: _write_all(kept, text.encode())
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def say(message: str) -> None:
    """One line for a person on stderr, where it does not mix with what was asked for."""
    print(message, file=sys.stderr, flush=True)
