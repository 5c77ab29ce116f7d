"""The whole surface in one place: every task, and every setting with its default."""

from invoke.collection import Collection

from .building import build, lock, new
from .developing import bench, lint, test
from .settings import DEFAULTS

ns = Collection(build, lock, new, test, lint, bench)
ns.configure({"layerkit": DEFAULTS})
