"""Publishing layers: a layer version on AWS for each build and region, unless the same content is there already.

``plan_publish`` asks AWS and works out steps, and changes nothing; ``publish`` does them, side by side. What a step
has found out is not believed for long: PublishLayerVersion makes a version with each call, so when its answer is
lost, the versions are listed and compared before it is called again.
"""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import Any

from layerkit.aws import Aws, AwsError, Lost, NotThere, Throttled
from layerkit.environments import Environment
from layerkit.errors import ConfigurationError, ExternalError, LayerkitError
from layerkit.files import write_whole
from layerkit.layerversions import Permission, Version, permissions, versions
from layerkit.model import MIB, Target
from layerkit.processes import threads
from layerkit.releasing import Release, mark
from layerkit.results import digest_of
from layerkit.runtimes import limits


class Action(Enum):
    """What becomes of one layer in one region."""

    PUBLISH = "publish"
    PRESENT = "already there"


@dataclass(frozen=True)
class Step:
    """One layer in one region: what is to be done."""

    release: Release
    region: str
    action: Action
    version: Version | None = None
    """The version that has the content already."""
    newest: int = 0
    """The number of the newest version of the layer there; 0: there is none."""
    bucket: str = ""
    """The bucket that the zip goes through; empty: it is sent in the request."""
    permissions: tuple[Permission, ...] = ()
    """What is to be allowed."""
    parameter: str = ""
    """The SSM parameter that is to have the ARN; empty: none, or it has it."""
    notes: tuple[str, ...] = ()
    """What a person should know."""

    @property
    def changes(self) -> bool:
        """Whether it changes anything on AWS."""
        return self.action is Action.PUBLISH or bool(self.permissions or self.parameter)

    @property
    def name(self) -> str:
        return f"{self.release.layer} in {self.region}"


@dataclass(frozen=True)
class PublishPlan:
    """What is to be done in an environment, for each layer and region."""

    environment: Environment
    steps: tuple[Step, ...]

    @property
    def changes(self) -> bool:
        return any(step.changes for step in self.steps)

    @property
    def public(self) -> tuple[Step, ...]:
        """The steps that would let everybody use a version."""
        return tuple(step for step in self.steps if any(one.is_public for one in step.permissions))


@dataclass(frozen=True)
class Published:
    """What came of one step."""

    step: Step
    arn: str = ""
    version: int = 0
    recovered: bool = False
    """Whether the answer to PublishLayerVersion had been lost, and the version was found all the same."""
    error: LayerkitError | None = None
    """Why not all of the step was done; what ``arn`` names is there even so."""


# ---- the plan ----


def plan_publish(
    aws: Aws,
    wanted: Sequence[Release],
    regions: Sequence[str],
    journal: Journal,
    *,
    jobs: int = 8,
    direct: int | None = None,
) -> PublishPlan:
    """What has to be done so that each of ``wanted`` is in each of ``regions``; it only asks.

    ``direct`` is how many bytes a request can carry (default: AWS's limit). ConfigurationError where a zip is larger
    and its region has no bucket.
    """
    most = limits()["direct_upload"] if direct is None else direct
    places = [(release, region) for release in wanted for region in regions]
    for release, region in places:
        if release.size > most and region not in aws.environment.buckets:
            raise ConfigurationError(
                f"{release.layer}: its zip has {release.size / MIB:.1f} MiB, and a request can carry "
                f"{most / MIB:.0f} MiB. Nothing was published.",
                f"Name a bucket in that region: {aws.environment.where}.buckets.{region}",
            )
    with threads(jobs) as pool:
        steps = tuple(pool.map(lambda place: _plan(aws, place[0], place[1], journal, most), places))
    return PublishPlan(aws.environment, steps)


def _plan(aws: Aws, release: Release, region: str, journal: Journal, most: int) -> Step:
    found = versions(aws, region, release.layer)
    present = _with_content(aws, region, release, found)
    bucket = aws.environment.buckets.get(region, "") if release.size > most else ""
    step = Step(
        release,
        region,
        Action.PRESENT if present else Action.PUBLISH,
        version=present,
        newest=found[0].number if found else 0,
        bucket="" if present else bucket,
    )
    if present is None:
        previous = _previous(found, release.target)
        allowed, notes = permissions(aws, region, release.layer, previous.number) if previous else ((), ())
        step = replace(step, permissions=allowed, notes=notes)
    else:
        step = _completed(aws, step, present, found, journal)
    parameter = _parameter(aws.environment, release)
    if parameter and not (present and _parameter_value(aws, region, parameter) == present.arn):
        step = replace(step, parameter=parameter)
    return step


def _completed(aws: Aws, step: Step, present: Version, found: Sequence[Version], journal: Journal) -> Step:
    """What a version that is there still lacks: what an interrupted run had not come to."""
    layer, target = step.release.layer, step.release.target
    previous = _previous([one for one in found if one.number < present.number], target)
    pending = journal.pending(step)
    if not pending and (previous is None or any(one.number > present.number for one in found if one.is_for(target))):
        return step
    allowed, _ = permissions(aws, step.region, layer, present.number)
    if pending:
        return replace(step, permissions=tuple(one for one in pending if one not in allowed))
    before, _ = permissions(aws, step.region, layer, previous.number) if previous else ((), ())
    lacking = [str(one) for one in before if one not in allowed]
    if not lacking or previous is None:
        return step
    note = f"version {present.number} does not allow what version {previous.number} does ({'; '.join(lacking)})"
    return replace(step, notes=(note,))


def _previous(found: Sequence[Version], target: Target) -> Version | None:
    """The version that the next one takes the place of: the newest for the same target, else the newest of all."""
    return next((one for one in found if one.is_for(target)), found[0] if found else None)


def _with_content(aws: Aws, region: str, release: Release, found: Iterable[Version]) -> Version | None:
    """The newest of ``found`` that is what ``release`` would become; descriptions say which are worth asking about."""
    made_from = mark(release.inputs)
    for one in found:
        same = one.is_for(release.target) and one.licence == release.licence
        if same and re.match(rf"{re.escape(made_from)}\b", one.description):
            try:
                answer = aws.call(
                    "lambda", region, "get_layer_version", LayerName=release.layer, VersionNumber=one.number
                )
            except NotThere:  # it was deleted meanwhile
                continue
            if answer["Content"]["CodeSha256"] == release.code_sha256:
                return one
    return None


# ---- doing it ----


class Journal:
    """What a run had set out to allow, by layer, region and content: noted before, and forgotten when it is done.

    Permissions can only be given to a version that is there. Whether one lacks them because a run was interrupted, or
    because somebody has taken them away, nothing on AWS can tell.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def pending(self, step: Step) -> tuple[Permission, ...]:
        """What is still to be allowed; nothing where no run was interrupted."""
        with self._lock:
            return tuple(Permission(**entry) for entry in self._read().get(self._key(step), ()))

    def note(self, step: Step) -> None:
        self._write(step, [asdict(one) for one in step.permissions])

    def forget(self, step: Step) -> None:
        self._write(step, [])

    @staticmethod
    def _key(step: Step) -> str:
        return digest_of(step.region, step.release.layer, str(step.release.target), step.release.sha256)

    def _write(self, step: Step, entries: list[dict[str, Any]]) -> None:
        with self._lock:
            noted = self._read()
            key = self._key(step)
            if noted.get(key, []) != entries:
                noted[key] = entries
                write_whole(self._path, json.dumps({key: value for key, value in noted.items() if value}, indent=2))

    def _read(self) -> dict[str, Any]:
        try:
            noted = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise ConfigurationError(
                f"{self._path} can't be read: {error}.",
                "Remove it; permissions that an interrupted run had not given yet have to be given by hand then.",
            ) from error
        return dict(noted)


_TRIES = 4
"""How often a version is asked to be made, in all."""

_LARGE = 8 * MIB
_AT_ONCE = threading.BoundedSemaphore(4)
"""A large zip takes several times its size in memory while it is sent."""


def publish(
    aws: Aws,
    plan: PublishPlan,
    journal: Journal,
    *,
    jobs: int = 8,
    tell: Callable[[Published], None] = lambda done: None,
    wait: Callable[[float], object] | None = None,
) -> tuple[Published, ...]:
    """Do the steps of ``plan``, side by side; what came of each, in the plan's order. A step's failure is its own.

    ``tell`` is called for each as it is done, from any thread. When this is interrupted, what has been sent is waited
    for, so that it is told as well, and nothing else is begun. ``wait`` pauses for seconds; by default an interruption
    ends the pause.
    """
    stop = threading.Event()

    def one(step: Step) -> Published:
        if stop.is_set():
            return Published(step, error=ExternalError("it was not begun"))
        done = _Worker(aws, journal, stop, wait or stop.wait).do(step)
        tell(done)
        return done

    with threads(jobs) as pool:
        futures = [pool.submit(one, step) for step in plan.steps]
        try:
            return tuple(future.result() for future in futures)
        except BaseException:  # Ctrl-C too: no further step begins, and it is raised again
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@dataclass(frozen=True)
class _Worker:
    aws: Aws
    journal: Journal
    stop: threading.Event
    """Set when nothing else is to be begun."""
    wait: Callable[[float], object]

    def do(self, step: Step) -> Published:
        done = Published(step)
        try:
            if step.version:
                done = replace(done, arn=step.version.arn, version=step.version.number)
            else:
                self.journal.note(step)
                done = self._publish(step)
            self._allow(step, done.version)
            self.journal.forget(step)
            if step.parameter:
                self.aws.call(
                    "ssm",
                    step.region,
                    "put_parameter",
                    Name=step.parameter,
                    Value=done.arn,
                    Type="String",
                    Overwrite=True,
                )
        except LayerkitError as error:
            return replace(done, error=error)
        except OSError as error:
            return replace(done, error=ExternalError(f"{step.release.zip.name}: {error.strerror or error}."))
        return done

    def _publish(self, step: Step) -> Published:
        release = step.release
        if step.bucket:
            self._upload(step)
        for attempt in range(1, _TRIES + 1):
            try:
                with _AT_ONCE if release.size > _LARGE and not step.bucket else nullcontext():
                    answer = self._ask(step)
            except Throttled:  # nothing was done
                if attempt == _TRIES or self.stop.is_set():
                    raise
                self.wait(_pause(attempt))
                continue
            except Lost:
                found = self._look(step)
                if found:
                    return Published(step, found.arn, found.number, recovered=True)
                if attempt == _TRIES or self.stop.is_set():
                    raise
                continue
            if answer["Content"]["CodeSha256"] != release.code_sha256:
                raise ExternalError(
                    f"{step.name}: AWS has made {answer['LayerVersionArn']} of other content than was sent.",
                    "Don't use that version; publish again.",
                )
            return Published(step, answer["LayerVersionArn"], int(answer["Version"]))
        raise AssertionError("every attempt returns or raises")

    def _ask(self, step: Step) -> dict[str, Any]:
        release = step.release
        content: dict[str, Any] = {"S3Bucket": step.bucket, "S3Key": release.key}
        if not step.bucket:
            content = {"ZipFile": _whole(release)}
        more = {"LicenseInfo": release.licence} if release.licence else {}
        return self.aws.call(
            "lambda",
            step.region,
            "publish_layer_version",
            once=True,
            LayerName=release.layer,
            Description=release.description,
            Content=content,
            CompatibleRuntimes=[release.target.runtime],
            CompatibleArchitectures=[release.target.architecture],
            **more,
        )

    def _look(self, step: Step) -> Version | None:
        """After a lost answer: the version that it was about, looked for repeatedly, as AWS may still be at it."""
        for attempt in range(_TRIES):
            if attempt:
                self.wait(_pause(attempt))
            later = [one for one in versions(self.aws, step.region, step.release.layer) if one.number > step.newest]
            found = _with_content(self.aws, step.region, step.release, later)
            if found:
                return found
        return None

    def _upload(self, step: Step) -> None:
        """Put the zip into the bucket, unless it is there; S3 checks what arrives."""
        release = step.release
        checksum = release.code_sha256
        try:
            there = self.aws.call(
                "s3", step.region, "head_object", Bucket=step.bucket, Key=release.key, ChecksumMode="ENABLED"
            )
            if there.get("ChecksumSHA256") == checksum and there["ContentLength"] == release.size:
                return
        except NotThere:
            pass
        with release.zip.open("rb") as file:
            self.aws.call(
                "s3",
                step.region,
                "put_object",
                Bucket=step.bucket,
                Key=release.key,
                Body=file,
                ChecksumAlgorithm="SHA256",
                ChecksumSHA256=checksum,
            )

    def _allow(self, step: Step, number: int) -> None:
        for permission in step.permissions:
            more: dict[str, Any] = {"OrganizationId": permission.organization} if permission.organization else {}
            try:
                self.aws.call(
                    "lambda",
                    step.region,
                    "add_layer_version_permission",
                    LayerName=step.release.layer,
                    VersionNumber=number,
                    StatementId=permission.statement,
                    Action=permission.action,
                    Principal=permission.principal,
                    **more,
                )
            except AwsError:
                # It may have been given by a call whose answer was lost.
                if permission not in permissions(self.aws, step.region, step.release.layer, number)[0]:
                    raise


def _whole(release: Release) -> bytes:
    """The zip; ExternalError when it is another one by now."""
    content = release.zip.read_bytes()
    if sha256(content).hexdigest() != release.sha256:
        raise ExternalError(f"{release.zip.name} was changed while it was published.", "Give the command again.")
    return content


def _pause(attempt: int) -> float:
    """How many seconds to wait after an attempt: longer each time, and not all at once."""
    return float(2 ** (attempt - 1) * (0.5 + random.random() / 2))  # noqa: S311  (nothing is to be kept secret)


# ---- where the ARNs go ----


def _parameter(environment: Environment, release: Release) -> str:
    return f"{environment.ssm_prefix}/{release.layer}/{release.target}" if environment.ssm_prefix else ""


def _parameter_value(aws: Aws, region: str, name: str) -> str:
    try:
        answer = aws.call("ssm", region, "get_parameter", Name=name)
    except NotThere:
        return ""
    return str(answer["Parameter"]["Value"])


Arns = dict[str, dict[str, dict[str, str]]]
"""By layer, target and region."""


def read_arns(root: Path, environment: Environment) -> Arns:
    """What the environment's file has; nothing where it has none. ConfigurationError where it is another file."""
    path = _arns_path(root, environment)
    if path is None or not path.exists():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != 1 or document["account"] != environment.account:
            raise ValueError("it is of another schema or account")  # noqa: TRY301  (one answer to all that is wrong)
        return {
            layer: {target: dict(regions) for target, regions in targets.items()}
            for layer, targets in document["layers"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{environment.where}.arns_file: {environment.arns_file} is there, and has no ARNs of this account: "
            f"{error}.",
            "Move it away, or name another file.",
        ) from error


def write_arns(root: Path, environment: Environment, published: Iterable[Published]) -> None:
    """Put the ARNs into the environment's file, beside those of other layers, targets and regions."""
    path = _arns_path(root, environment)
    if path is None:
        return
    layers = read_arns(root, environment)
    for one in published:
        if one.arn:
            targets = layers.setdefault(one.step.release.layer, {})
            targets.setdefault(str(one.step.release.target), {})[one.step.region] = one.arn
    document = {"schema": 1, "account": environment.account, "layers": layers}
    content = json.dumps(document, indent=2, sort_keys=True) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != content:
        write_whole(path, content)


def _arns_path(root: Path, environment: Environment) -> Path | None:
    if not environment.arns_file:
        return None
    path = (root / environment.arns_file).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ConfigurationError(f"{environment.where}.arns_file lies outside of the checkout.")
    return path
