"""The surface: tasks that turn flags into one call of layerkit and one rendering. Only this package knows Invoke."""

from .namespace import ns

__all__ = ["ns"]
