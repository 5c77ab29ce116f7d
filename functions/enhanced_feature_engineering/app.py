"""Turns records into numbers that a model can be trained on. Attaches core-data-science and ml-libraries.

An event has ``records`` and ``training`` (lists of objects), the columns to use (``numeric``, ``categorical`` and
``dates``, lists of names; at least one column altogether) and the number of ``components`` wanted. What is learned
(medians, scales, categories, principal components) is learned from ``training`` and applied to ``records``:

    numeric       missing values become the median; scaled to mean 0 and deviation 1
    dates         ISO 8601; the weekday (in UTC) as a point on a circle, where Sunday is next to Monday; then as numeric
    categorical   a column of 0 and 1 for each category; a category that training has not is 0 in all of them

The answer's statusCode is 200, with the features, their names and the principal components of each record; or 400 with
a reason, when the event can't be used. The body is an object: this function is invoked directly, behind API Gateway it
would have to be text.
"""

from __future__ import annotations

import atexit
import json
import math
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_started = time.perf_counter()

import joblib
import numpy
import pandas
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

# Read as a metric from the function's log: what the layers add to a cold start.
_seconds = round(time.perf_counter() - _started, 3)
print(json.dumps({"metric": "layer_import_time", "value": _seconds, "unit": "seconds"}), flush=True)

# Pipelines that this environment has fitted. Its name can't be guessed: whoever writes a pickle runs code here.
FITTED = Path(tempfile.mkdtemp(prefix="fitted-"))
atexit.register(shutil.rmtree, FITTED, ignore_errors=True)

KINDS = ("numeric", "categorical", "dates")
MISSING = "(missing)"


class BadEvent(Exception):
    """The event can't be used, and why."""


def lambda_handler(event: Any, context: object) -> dict[str, Any]:
    """The answer to one event, as this module's docstring describes both."""
    try:
        columns = _columns(event)
        training = _table(event, "training", columns)
        records = _table(event, "records", columns)
        pipeline = _fitted(training, columns["categorical"], event.get("components"))
    except BadEvent as error:
        return {"statusCode": 400, "body": {"reason": str(error)}}
    features = pipeline["features"].transform(records)
    components = pipeline["components"]
    return {
        "statusCode": 200,
        "body": {
            "rows": len(records),
            "names": pipeline["features"].get_feature_names_out().tolist(),
            "features": _rounded(features),
            "components": _rounded(components.transform(features)),
            "explained_variance_ratio": _rounded(components.explained_variance_ratio_),
        },
    }


def _columns(event: Any) -> Mapping[str, Sequence[str]]:
    if not isinstance(event, dict):
        raise BadEvent("an object is needed")
    columns = {kind: event.get(kind, []) for kind in KINDS}
    for kind, names in columns.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise BadEvent(f"{kind}: a list of column names is needed")
    named = [name for names in columns.values() for name in names]
    made = [made_name for name in columns["dates"] for made_name in _weekday(name)]
    if not named or len(named + made) != len({*named, *made}):
        raise BadEvent(f"{', '.join(KINDS)}: at least one column is needed, and each once")
    return columns


def _table(event: Mapping[str, Any], key: str, columns: Mapping[str, Sequence[str]]) -> pandas.DataFrame:
    """The records under ``key``: text in the categorical columns, float64 in all others."""
    records = event.get(key)
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise BadEvent(f"{key}: a list of objects is needed")
    for row, record in enumerate(records, 1):
        for name, value in record.items():
            if isinstance(value, dict | list):
                raise BadEvent(f"{key}: row {row}: {name} is not a single value")
    given = pandas.DataFrame(records, index=range(len(records)), dtype=object)
    given = given.reindex(columns=[name for names in columns.values() for name in names])
    made: dict[str, pandas.Series] = {}
    for name in columns["numeric"]:
        numbers = pandas.Series([_number(value) for value in given[name]], dtype="float64")
        made[name] = _all_read(given[name], numbers, key)
    for name in columns["dates"]:
        text = given[name].where([isinstance(value, str) for value in given[name]])
        dates = pandas.to_datetime(text, errors="coerce", format="ISO8601", utc=True)
        angle = _all_read(given[name], dates, key).dt.day_of_week * (2 * numpy.pi / 7)
        for column, function in zip(_weekday(name), (numpy.sin, numpy.cos), strict=True):
            made[column] = function(angle)
    for name in columns["categorical"]:
        made[name] = pandas.Series([MISSING if pandas.isna(value) else str(value) for value in given[name]])
    return pandas.DataFrame(made)


def _weekday(name: str) -> tuple[str, str]:
    """What the columns made of the dates in ``name`` are called."""
    return f"{name}_weekday_sin", f"{name}_weekday_cos"


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    # Beyond that a variance overflows.
    return number if abs(number) < 1e100 else math.nan


def _all_read(given: pandas.Series, read: pandas.Series, key: str) -> pandas.Series:
    """``read``; BadEvent when a value that was given is not in it."""
    lost = numpy.flatnonzero(given.notna() & read.isna())
    if len(lost):
        raise BadEvent(f"{key}: row {lost[0] + 1}: {given.name}: {given.iloc[lost[0]]!r} can't be read")
    return read


def _fitted(training: pandas.DataFrame, categorical: Sequence[str], components: Any) -> Pipeline:
    """The pipeline for these training records, fitted now or by an earlier invocation of this environment."""
    if not isinstance(components, int) or isinstance(components, bool) or components < 1:
        raise BadEvent("components: a whole number from 1 is needed")
    kept = FITTED / f"{joblib.hash((training, categorical, components))}.joblib"
    if not kept.exists():
        numeric = [name for name in training.columns if name not in categorical]
        scaled = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
        encoded = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
        features = ColumnTransformer([("numeric", scaled, numeric), ("categorical", encoded, list(categorical))])
        matrix = features.fit_transform(training)
        different = len(numpy.unique(matrix, axis=0))
        most = min(different - 1, matrix.shape[1])
        if components > most:
            raise BadEvent(f"components: {different} different rows of {matrix.shape[1]} features have {most} at most")
        # The full solver has no randomness.
        steps = [("features", features), ("components", PCA(components, svd_solver="full").fit(matrix))]
        joblib.dump(Pipeline(steps), kept)
    # Loaded the first time too: the first answer is then like all others.
    return joblib.load(kept)


def _rounded(numbers: numpy.ndarray) -> list[Any]:
    """To four places, since the last bits depend on the processor; adding 0 makes -0.0 plain."""
    rounded: list[Any] = (numpy.round(numbers, 4) + 0.0).tolist()
    return rounded


if __name__ == "__main__":
    sample = json.loads(Path(__file__).with_name("event.json").read_text(encoding="utf-8"))
    print(json.dumps(lambda_handler(sample, None)))
