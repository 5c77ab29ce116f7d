"""The whole surface in one place: every task, and every setting with its default."""

from invoke.collection import Collection

from .building import build, lock, new
from .cleaning import clean
from .developing import bench, lint, test
from .diagnosing import doctor
from .optimizing import optimize
from .publishing import publish, usage
from .scanning import advisories_update, sbom, security_scan
from .settings import DEFAULTS
from .updating import outdated, update
from .validating import status, validate

ns = Collection(
    build,
    optimize,
    validate,
    status,
    security_scan,
    sbom,
    advisories_update,
    outdated,
    update,
    publish,
    usage,
    clean,
    doctor,
    lock,
    new,
    test,
    lint,
    bench,
)
ns.configure({"layerkit": DEFAULTS})
