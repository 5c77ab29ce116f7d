"""Results of checks and proofs, kept in the user's cache by what they were got from, and checked before use.

The key is a digest over everything that the result depends on (content, rules, interpreter), so a result never gets
old: other inputs have another key. A folder of results can be shared; one that was cut short or changed is as if it
were not there.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from layerkit.files import write_whole


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

    def put(self, kind: str, key: str, result: Any) -> None:
        """Keep ``result`` (a value that JSON can hold); a cache that can't be written to is no reason to fail."""
        document = {"result": result, "sha256": digest_of(kind, key, result)}
        for folder in self._folders:
            with suppress(OSError):
                write_whole(_path(folder, kind, key), json.dumps(document))

    @property
    def _folders(self) -> list[Path]:
        return [self.folder, self.shared] if self.shared else [self.folder]


def _path(folder: Path, kind: str, key: str) -> Path:
    return folder / kind / key[:2] / f"{key}.json"


def _read(folder: Path, kind: str, key: str) -> Any:
    try:
        document = json.loads(_path(folder, kind, key).read_text(encoding="utf-8"))
        content, digest = document["result"], document["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return content if digest == digest_of(kind, key, content) else None
