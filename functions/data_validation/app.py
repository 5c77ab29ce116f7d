"""Says which records of a table break the rules for its columns. Attaches core-data-science and aws-utilities.

An event has ``rules``, and the records themselves (``records``, a list of objects) or where they lie in S3 (``bucket``
and ``key``; CSV when the key ends in .csv, otherwise a JSON list of objects). A rule is an object:

    type                integer, number, string or date (ISO 8601); numbers may be written as text, as CSV has them
    required, unique    true or false
    minimum, maximum    for integer and number
    allowed             a list of values

The answer's statusCode is 200, with the number of rows, the first problems (rows count from 1) and what is in each
column; or 400 with a reason, when the event can't be used. A failure of S3 is raised, so that Lambda records it. The
body is an object: this function is invoked directly, behind API Gateway it would have to be text.
"""

from __future__ import annotations

import io
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_started = time.perf_counter()

import boto3
import botocore.exceptions
import numpy
import pandas
from dateutil.parser import isoparse

# Read as a metric from the function's log: what the layers add to a cold start.
_seconds = round(time.perf_counter() - _started, 3)
print(json.dumps({"metric": "layer_import_time", "value": _seconds, "unit": "seconds"}), flush=True)

# Lambda puts credentials into the environment. Elsewhere, where there may be none, botocore would wait for EC2's.
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")

# Made once and during INIT, which has a full processor, not in the first request.
S3 = boto3.client("s3", region_name=os.environ.get("AWS_REGION", "us-east-1"))

TYPES = ("integer", "number", "string", "date")
MAX_PROBLEMS = 100  # Lambda's answers end at 6 MB; `problem_count` tells how many there are


class BadEvent(Exception):
    """The event can't be used, and why."""


def lambda_handler(event: Any, context: object) -> dict[str, Any]:
    """The answer to one event, as this module's docstring describes both."""
    try:
        rules = _rules(event)
        table = _table(event)
    except BadEvent as error:
        return {"statusCode": 400, "body": {"reason": str(error)}}
    return {"statusCode": 200, "body": _checked(table, rules)}


def _rules(event: Any) -> Mapping[str, Mapping[str, Any]]:
    rules = event.get("rules") if isinstance(event, dict) else None
    if not isinstance(rules, dict) or not rules:
        raise BadEvent("rules: an object with one rule a column is needed")
    for column, rule in rules.items():
        if not isinstance(rule, dict) or rule.get("type") not in TYPES:
            raise BadEvent(f"rules: {column}: type must be one of {', '.join(TYPES)}")
        numeric = rule["type"] in ("integer", "number")
        for key, value in rule.items():
            match key:
                case "type":
                    good = True
                case "required" | "unique":
                    good = isinstance(value, bool)
                case "minimum" | "maximum":
                    good = numeric and not isinstance(value, str) and math.isfinite(_number(value))
                case "allowed":
                    good = isinstance(value, list) and not any(isinstance(item, dict | list) for item in value)
                case _:
                    raise BadEvent(f"rules: {column}: {key} is not part of a rule")
            if not good:
                raise BadEvent(f"rules: {column}: {key} can't be {json.dumps(value)} for type {rule['type']}")
    return rules


def _table(event: Mapping[str, Any]) -> pandas.DataFrame:
    """The records as Python objects, so that no value has changed its type before it is looked at."""
    inline, stored = "records" in event, "bucket" in event or "key" in event
    if inline == stored:
        raise BadEvent("either records, or bucket and key are needed")
    if inline:
        return _from_records(event["records"])
    bucket, key = event.get("bucket"), event.get("key")
    if not isinstance(bucket, str) or not isinstance(key, str):
        raise BadEvent("bucket and key: both are needed, as text")
    where = f"s3://{bucket}/{key}"
    try:
        content = S3.get_object(Bucket=bucket, Key=key)["Body"].read()
    except (S3.exceptions.NoSuchKey, S3.exceptions.NoSuchBucket):
        raise BadEvent(f"{where} does not exist") from None
    except botocore.exceptions.ParamValidationError:
        raise BadEvent(f"{where} can't be a name in S3") from None
    try:
        if key.endswith(".csv"):
            # Only an empty field is missing: NA is also a country's code.
            fields = {"dtype": str, "index_col": False, "keep_default_na": False, "na_values": [""]}
            return pandas.read_csv(io.BytesIO(content), **fields).astype(object)
        records = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadEvent(f"{where} can't be read: {error}") from None
    return _from_records(records)


def _from_records(records: Any) -> pandas.DataFrame:
    if not isinstance(records, list):
        raise BadEvent("records: a list of objects is needed")
    for row, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise BadEvent(f"records: row {row} is not an object")
        for column, value in record.items():
            if isinstance(value, dict | list):
                raise BadEvent(f"records: row {row}: {column} is not a single value")
    return pandas.DataFrame(records, index=range(len(records)), dtype=object)


def _checked(table: pandas.DataFrame, rules: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    known = table.reindex(columns=list(rules))
    problems = []
    columns = {}
    for place, (column, rule) in enumerate(rules.items()):
        values = known[column]
        present = values.notna()
        read = _read(values[present], rule["type"]).reindex(values.index)
        for found, text in _broken(values, present, read, rule):
            problems += [(int(row) + 1, place, column, text) for row in numpy.flatnonzero(found)]
        columns[column] = {"missing": int((~present).sum()), "distinct": int(values[present].nunique())}
        columns[column] |= _statistics(read.dropna(), rule["type"])
    problems.sort()
    return {
        "rows": len(table),
        "valid_rows": len(table) - len({row for row, *_ in problems}),
        "unknown_columns": sorted(set(table.columns) - set(rules)),
        "problem_count": len(problems),
        "problems": [{"row": row, "column": name, "problem": text} for row, _, name, text in problems[:MAX_PROBLEMS]],
        "columns": columns,
    }


def _read(values: pandas.Series, kind: str) -> pandas.Series:
    """``values`` as numbers, dates (UTC) or text; missing where one is not of that kind."""
    if kind == "string":
        return values.where(numpy.array([isinstance(value, str) for value in values], dtype=bool))
    if kind == "date":
        return pandas.Series([_date(value) for value in values], index=values.index, dtype=object)
    numbers = pandas.Series([_number(value) for value in values], index=values.index, dtype="float64")
    return numbers.where(numbers % 1 == 0) if kind == "integer" else numbers


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _date(value: object) -> datetime | None:
    """A moment without an offset is taken as UTC."""
    if not isinstance(value, str):
        return None
    try:
        moment: datetime = isoparse(value)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def _broken(
    values: pandas.Series, present: pandas.Series, read: pandas.Series, rule: Mapping[str, Any]
) -> Sequence[tuple[pandas.Series, str]]:
    """What is wrong with one column: for each kind of problem, the rows that have it."""
    kind = rule["type"]
    found = [(present & read.isna(), f"not {'an' if kind == 'integer' else 'a'} {kind}")]
    if rule.get("required"):
        found.append((~present, "missing"))
    if "minimum" in rule:
        found.append((read < rule["minimum"], f"less than {rule['minimum']}"))
    if "maximum" in rule:
        found.append((read > rule["maximum"], f"more than {rule['maximum']}"))
    if "allowed" in rule:
        found.append((present & ~values.isin(rule["allowed"]), "not allowed"))
    if rule.get("unique"):
        found.append((present & values.duplicated(), "the same as in an earlier row"))
    return found


def _statistics(read: pandas.Series, kind: str) -> dict[str, Any]:
    """What the values of the right type have between them; empty for text, and for none at all."""
    if kind == "string" or read.empty:
        return {}
    if kind == "date":
        return {"first": read.min().isoformat(), "last": read.max().isoformat()}
    numbers = read.to_numpy()
    with numpy.errstate(over="ignore", invalid="ignore"):
        return {
            "minimum": _rounded(numbers.min()),
            "maximum": _rounded(numbers.max()),
            "mean": _rounded(numbers.mean()),
            "median": _rounded(numpy.median(numbers)),
            "deviation": _rounded(numbers.std()),
        }


def _rounded(number: float) -> float | None:
    """To four places, since the last bits depend on the processor; JSON has no infinity, and needs no minus zero."""
    return round(float(number), 4) + 0.0 if math.isfinite(number) else None


if __name__ == "__main__":
    sample = json.loads(Path(__file__).with_name("event.json").read_text(encoding="utf-8"))
    print(json.dumps(lambda_handler(sample, None)))
