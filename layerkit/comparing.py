"""What optimization came to for a layer, before and after: bytes, zipped bytes, the time of its imports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from layerkit.interpreters import Interpreter
from layerkit.metadata import top_level_modules
from layerkit.model import Layer, Target
from layerkit.probing import Bounds, Prober


@dataclass(frozen=True)
class Comparison:
    """A layer as its wheels have it, and as it was built: bytes unzipped and zipped, and seconds of its imports.

    Seconds are those of one fresh process that imports all that the layer declares, else its top-level modules; None
    where nothing built can be run.
    """

    size: int
    zip_size: int
    import_seconds: float | None = None
    import_seconds_after: float | None = None


@dataclass(frozen=True)
class Timed:
    """A tree whose imports are timed, with the trees of the layers below it."""

    tree: Path
    below: Sequence[Path]


def import_seconds(layer: Layer, trees: Sequence[Timed], interpreter: Interpreter, target: Target) -> list[float]:
    """How long the imports of ``layer`` take with each of ``trees``, one after the other."""
    modules = layer.imports or top_level_modules(trees[0].tree)
    prober = Prober(interpreter, Bounds(seconds=300.0))
    return [prober.time(modules, [*timed.below, timed.tree], target) for timed in trees]
