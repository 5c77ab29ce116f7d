"""Errors that a user can act on.

    LayerkitError (exit 2)         what was wrong and where, and a hint: what to do next
    |- ConfigurationError (2)      a flag, a setting, layer.toml, requirements.txt: the user's own files
    |- CheckFailed (3)             a check ran and found something
    |- ExternalError (4)           a tool, the network or the machine failed, so the answer is unknown
    `- Incomplete (5)              partly done; the hint says how to resume or undo

The surface answers an OSError (a full disk, a file that can't be written) with 4 as well. Anything else that escapes
is a bug and shows as a traceback with exit code 1.
"""

from __future__ import annotations

from typing import ClassVar


class LayerkitError(Exception):
    """An error with a message, a hint (what to do next; may be empty) and the exit code of the contract."""

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class ConfigurationError(LayerkitError):
    """The user's own input (flag, setting, file) can't be used as it is."""

    exit_code = 2


class CheckFailed(LayerkitError):
    """A check ran and found something; nothing was changed."""

    exit_code = 3


class ExternalError(LayerkitError):
    """A tool, the network or the machine failed, so that the answer is unknown."""

    exit_code = 4


class Incomplete(LayerkitError):
    """Partly done; the hint says how to resume or undo."""

    exit_code = 5
