"""Results of checks and proofs, kept in the user's cache by what they were got from, and checked before use.

The key is a digest over everything that the result depends on (content, rules, interpreter), so a result never gets
old: other inputs have another key. A folder of results can be shared; one that was cut short or changed is as if it
were not there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from layerkit.files import write_whole

_T = TypeVar("_T")


def digest_of(*inputs: Any) -> str:
    """SHA-256 (hex) over values that JSON can hold."""
    return sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Results:
    """A folder of results, a file each; and one that a team shares, where there is one."""

    folder: Path
    shared: Path | None = None

    def get(self, kind: str, key: str) -> Any:
        """The result of ``kind`` for ``key`` (a hex digest); None where there is none that can be believed."""
        return next((found for folder in self._folders if (found := _read(folder, kind, key)) is not None), None)

    def read(self, kind: str, key: str, shape: Callable[[Any], _T]) -> _T | None:
        """As ``get``, with what ``shape`` makes of the result; one that it raises ValueError for is not believed."""
        for folder in self._folders:
            found = _read(folder, kind, key)
            if found is not None:
                with suppress(ValueError):
                    return shape(found)
        return None

    def put(self, kind: str, key: str, result: Any) -> None:
        """Keep ``result`` (a value that JSON can hold); a cache that can't be written to is no reason to fail."""
        document = {"result": result, "sha256": digest_of(kind, key, result)}
        for folder in self._folders:
            with suppress(OSError):
                write_whole(_path(folder, kind, key), json.dumps(document))

    @property
    def _folders(self) -> list[Path]:
        return [self.folder, self.shared] if self.shared else [self.folder]


# ---- what a result is: any other shape is as if it were not there ----


def texts(value: Any) -> list[str]:
    """A result that is a list of texts; ValueError for any other."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise ValueError("not a list of texts")


def by_name(value: Any) -> dict[str, Any]:
    """A result that is an object; ValueError for any other."""
    if isinstance(value, dict):
        return value
    raise ValueError("not an object")


def texts_by_name(value: Any) -> dict[str, str]:
    """A result that is an object with texts; ValueError for any other."""
    texts(list(by_name(value).values()))
    return by_name(value)


def fields(value: Any, *names: str) -> list[Any]:
    """The values of a result that is an object with just these names; ValueError for any other."""
    if by_name(value).keys() == set(names):
        return [value[name] for name in names]
    raise ValueError(f"not an object with {', '.join(names)}")


def whole_number(value: Any) -> int:
    """A result that is a whole number, 0 or more; ValueError for any other."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError("not a whole number")


def truth(value: Any) -> bool:
    """A result that is true or false; ValueError for any other."""
    if isinstance(value, bool):
        return value
    raise ValueError("neither true nor false")


def _path(folder: Path, kind: str, key: str) -> Path:
    return folder / kind / key[:2] / f"{key}.json"


def _read(folder: Path, kind: str, key: str) -> Any:
    try:
        document = json.loads(_path(folder, kind, key).read_text(encoding="utf-8"))
        content, digest = document["result"], document["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return content if digest == digest_of(kind, key, content) else None
