"""The door for ``inv``: one object, ``ns``, whichever way the tasks are reached.

Invoke loads this file as the module ``tasks``, while Python's import finds the folder ``tasks/``. A module that has
``__path__`` is a package, so with it set the folder's modules load from here too and both doors give the same ``ns``.
Run as a program (``scripts/inv`` does), it goes through layerkit's own Program, whose exit codes are documented.
"""

import sys
from pathlib import Path

_root = Path(__file__).resolve().parent
if str(_root) not in sys.path:
    sys.path.insert(0, str(_root))

if __name__ == "__main__":
    from tasks.program import main

    sys.exit(main())

__path__ = [str(_root / "tasks")]

from tasks.namespace import ns  # noqa: E402  (the folder is only importable once __path__ is set)

__all__ = ["ns"]
