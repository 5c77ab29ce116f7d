"""AWS on loopback: moto's server, and in front of it a Lambda that is as strict as the real one where moto is not.

The stand-in answers what layerkit asks of Lambda about layers and functions, with pages, lost answers, throttling and
denied calls; everything else (STS, S3, SSM) is passed on to moto. It records each operation.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

ACCOUNT = "123456789012"
"""moto's account."""
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}

Document = dict[str, Any]
PAGE = 50
DIRECT = 52_428_800
DESCRIPTION = 256


@contextmanager
def moto() -> Iterator[str]:
    """moto's server, empty, for as long as the context lasts: its address, on a port that the system chooses."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        connection = http.client.HTTPConnection(host, port)
        connection.request("POST", "/moto-api/reset")
        connection.getresponse().read()
        connection.close()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@dataclass
class Layer:
    """A layer in one region: its versions by number, and the number that comes next, since none is used twice."""

    versions: dict[int, Document] = field(default_factory=dict)
    policies: dict[int, dict[str, Document]] = field(default_factory=dict)
    next: int = 1


@dataclass
class StandIn:
    """What the strict Lambda has, does, and was asked."""

    behind: str
    """moto's address."""
    port: int = 0
    layers: dict[tuple[str, str], Layer] = field(default_factory=dict)
    """By region and name."""
    functions: dict[str, list[Document]] = field(default_factory=dict)
    """By region: configurations as ListFunctions with ALL has them."""
    aliases: dict[tuple[str, str], list[Document]] = field(default_factory=dict)
    """By region and function."""
    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    """By a function's ARN."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Region and operation."""
    denied: set[str] = field(default_factory=set)
    """Operations, each for all regions, or for one: ``eu-west-1/ListFunctions``."""
    expired: bool = False
    faults: dict[str, list[str]] = field(default_factory=dict)
    """By operation, what becomes of its next calls: ``throttled`` (too many), ``failed`` (an error of the server,
    before the work is done), ``echoed`` (an error that repeats the signature), ``lost`` (no answer, after the work was
    done), or nothing (an empty text)."""
    before: Callable[[str, str], None] = lambda region, operation: None
    """Called with region and operation before each call is looked at."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def count(self, operation: str) -> int:
        return sum(name == operation for _, name in self.asked)

    def layer(self, region: str, name: str) -> Layer:
        return self.layers.setdefault((region, name), Layer())

    def function(self, region: str, name: str, *layers: str, version: str = "$LATEST", **more: Any) -> str:
        """Add a function, or a published version of one; its ARN, without the version."""
        arn = f"arn:aws:lambda:{region}:{ACCOUNT}:function:{name}"
        configuration = {
            "FunctionName": name,
            "FunctionArn": f"{arn}:{version}",
            "Version": version,
            "Runtime": "python3.13",
            "Architectures": ["x86_64"],
            "Layers": [{"Arn": layer, "CodeSize": 1} for layer in layers],
        }
        self.functions.setdefault(region, []).append({**configuration, **more})
        return arn


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


_ROUTES = {
    ("POST", r"/2018-10-31/layers/(?P<layer>[^/]+)/versions"): "PublishLayerVersion",
    ("GET", r"/2018-10-31/layers/(?P<layer>[^/]+)/versions"): "ListLayerVersions",
    ("GET", r"/2018-10-31/layers/(?P<layer>[^/]+)/versions/(?P<version>\d+)"): "GetLayerVersion",
    ("GET", r"/2018-10-31/layers/(?P<layer>[^/]+)/versions/(?P<version>\d+)/policy"): "GetLayerVersionPolicy",
    ("POST", r"/2018-10-31/layers/(?P<layer>[^/]+)/versions/(?P<version>\d+)/policy"): "AddLayerVersionPermission",
    ("GET", r"/2015-03-31/functions/?"): "ListFunctions",
    ("GET", r"/2015-03-31/functions/(?P<function>[^/]+)/aliases"): "ListAliases",
    ("GET", r"/2017-03-31/tags/(?P<resource>.+)"): "ListTags",
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, stand_in: StandIn, *details: Any) -> None:
        self.aws = stand_in
        super().__init__(*details)

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def do_HEAD(self) -> None:
        self._handle()

    def _handle(self) -> None:
        body = self._body()
        parts = urlsplit(self.path)
        for (method, pattern), operation in _ROUTES.items():
            match = re.fullmatch(pattern, unquote(parts.path))
            if self.command == method and match:
                self._lambda(operation, match.groupdict(), parse_qs(parts.query), body)
                return
        self._pass_on(body)

    def _body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _region(self) -> str:
        match = re.search(r"Credential=[^/]+/\d+/([^/]+)/", self.headers.get("Authorization", ""))
        return match[1] if match else ""

    def _lambda(self, operation: str, path: Mapping[str, str], query: Mapping[str, list[str]], body: bytes) -> None:
        aws, region = self.aws, self._region()
        aws.before(region, operation)
        with aws.lock:
            aws.asked.append((region, operation))
            try:
                fault = self._refuse(region, operation)
                given = json.loads(body) if body else {}
                answer = _Operations(aws, region).do(operation, path, query, given)
            except _Refused as error:
                self._answer(error.status, {"Type": "User", "message": error.message}, error.code)
                return
        if fault == "lost":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self._answer(201 if operation == "PublishLayerVersion" else 200, answer)

    def _refuse(self, region: str, operation: str) -> str:
        """Refuse a call where that is its lot; what else is to become of it."""
        aws = self.aws
        if aws.expired:
            raise _Refused(403, "ExpiredTokenException", "The security token included in the request is expired")
        if aws.denied & {operation, f"{region}/{operation}"}:
            message = f"User: arn:aws:iam::{ACCOUNT}:user/me is not authorized to perform: lambda:{operation}"
            raise _Refused(403, "AccessDeniedException", message)
        faults = aws.faults.get(operation, [])
        fault = faults.pop(0) if faults else ""
        if fault == "throttled":
            raise _Refused(429, "TooManyRequestsException", "Rate Exceeded.")
        if fault == "failed":
            raise _Refused(500, "ServiceException", "An error occurred and the request cannot be processed.")
        if fault == "echoed":
            raise _Refused(400, "InvalidParameterValueException", self.headers.get("Authorization", ""))
        return fault

    def _answer(self, status: int, document: Document, code: str = "") -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        if code:
            self.send_header("x-amzn-ErrorType", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _pass_on(self, body: bytes) -> None:
        host = urlsplit(self.aws.behind).netloc
        action = re.search(rb"Action=(\w+)", body)
        target = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
        operation = action[1].decode() if action else target or f"{self.command} {urlsplit(self.path).path}"
        with self.aws.lock:
            self.aws.asked.append((self._region(), operation))
        connection = http.client.HTTPConnection(host)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("expect", "connection")}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "server", "date", "content-length"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        connection.close()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's own name)
        pass


@dataclass
class _Operations:
    aws: StandIn
    region: str

    def do(self, operation: str, path: Mapping[str, str], query: Mapping[str, list[str]], given: Document) -> Document:
        if operation == "PublishLayerVersion":
            return self.publish(path["layer"], given)
        if operation == "ListLayerVersions":
            layer = self.aws.layers.get((self.region, path["layer"]), Layer())
            listed = [
                {key: value for key, value in version.items() if key != "Content"}
                for _, version in sorted(layer.versions.items(), reverse=True)
            ]
            return self.page(listed, "LayerVersions", query)
        if operation == "ListFunctions":
            latest = query.get("FunctionVersion") != ["ALL"]
            listed = [
                one for one in self.aws.functions.get(self.region, []) if not latest or one["Version"] == "$LATEST"
            ]
            return self.page(listed, "Functions", query)
        if operation == "ListAliases":
            name = path["function"].rpartition(":")[2]
            return self.page(self.aws.aliases.get((self.region, name), []), "Aliases", query)
        if operation == "ListTags":
            return {"Tags": self.aws.tags.get(path["resource"], {})}
        return self.of_version(operation, path["layer"], int(path["version"]), given)

    def page(self, listed: list[Document], key: str, query: Mapping[str, list[str]]) -> Document:
        start = int(query.get("Marker", ["0"])[0])
        size = min(PAGE, int(query.get("MaxItems", [str(PAGE)])[0]))
        answer: Document = {key: listed[start : start + size]}
        if listed[start + size :]:
            answer["NextMarker"] = str(start + size)
        return answer

    def publish(self, name: str, given: Document) -> Document:
        content = self.content(given["Content"])
        if len(given.get("Description", "")) > DESCRIPTION:
            raise _Refused(400, "InvalidParameterValueException", "description: length must be at most 256")
        layer = self.aws.layer(self.region, name)
        number, layer.next = layer.next, layer.next + 1
        arn = f"arn:aws:lambda:{self.region}:{ACCOUNT}:layer:{name}"
        kept = ("Description", "CompatibleRuntimes", "CompatibleArchitectures", "LicenseInfo")
        layer.versions[number] = {
            "LayerVersionArn": f"{arn}:{number}",
            "Version": number,
            "CreatedDate": "2026-11-23T10:00:00.000+0000",
            **{key: given[key] for key in kept if key in given},
            "Content": {
                "CodeSha256": base64.b64encode(hashlib.sha256(content).digest()).decode(),
                "CodeSize": len(content),
            },
        }
        return {"LayerArn": arn, **layer.versions[number]}

    def content(self, given: Document) -> bytes:
        if "ZipFile" in given:
            content = base64.b64decode(given["ZipFile"])
            if len(content) > DIRECT:
                message = "Request must be smaller than 70167211 bytes for the PublishLayerVersion operation"
                raise _Refused(413, "RequestEntityTooLargeException", message)
        else:
            connection = http.client.HTTPConnection(urlsplit(self.aws.behind).netloc)
            signed = {"Authorization": f"AWS4-HMAC-SHA256 Credential=A/20261123/{self.region}/s3/aws4_request"}
            connection.request("GET", f"/{given['S3Bucket']}/{given['S3Key']}", headers=signed)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            if answer.status != 200:
                message = "Error occurred while GetObject. S3 Error Code: NoSuchKey."
                raise _Refused(400, "InvalidParameterValueException", message)
        if not content.startswith(b"PK"):
            raise _Refused(400, "InvalidParameterValueException", "Could not unzip uploaded file.")
        return content

    def of_version(self, operation: str, name: str, number: int, given: Document) -> Document:
        layer = self.aws.layers.get((self.region, name), Layer())
        if number not in layer.versions:
            raise _Refused(404, "ResourceNotFoundException", "The resource you requested does not exist.")
        version = layer.versions[number]
        if operation == "GetLayerVersion":
            return {"LayerArn": version["LayerVersionArn"].rpartition(":")[0], **version}
        policy = layer.policies.setdefault(number, {})
        if operation == "GetLayerVersionPolicy":
            if not policy:
                raise _Refused(404, "ResourceNotFoundException", "No policy is associated with the given resource.")
            document = {"Version": "2012-10-17", "Id": "default", "Statement": list(policy.values())}
            return {"Policy": json.dumps(document), "RevisionId": "1"}
        sid, principal = given["StatementId"], given["Principal"]
        if sid in policy:
            message = f"The statement id ({sid}) provided already exists."
            raise _Refused(409, "ResourceConflictException", message)
        if given.get("OrganizationId") and principal != "*":
            raise _Refused(400, "InvalidParameterValueException", "Principal must be * with an organization.")
        statement = {
            "Sid": sid,
            "Effect": "Allow",
            "Principal": principal if principal == "*" else {"AWS": f"arn:aws:iam::{principal}:root"},
            "Action": given["Action"],
            "Resource": version["LayerVersionArn"],
        }
        if given.get("OrganizationId"):
            statement["Condition"] = {"StringEquals": {"aws:PrincipalOrgID": given["OrganizationId"]}}
        policy[sid] = statement
        return {"Statement": json.dumps(statement), "RevisionId": "1"}


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that has gone away, or an answer that was lost
            super().handle_error(request, client_address)


@contextmanager
def serve(behind: str) -> Iterator[StandIn]:
    """The strict Lambda in front of moto at ``behind``, as long as the context lasts; the system chooses the port."""
    stand_in = StandIn(behind)
    server = _Server(("127.0.0.1", 0), partial(_Handler, stand_in))
    stand_in.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def strict_aws(behind: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The strict Lambda in front of moto, and an environment in which boto finds it and nothing else of this machine's.

    Calls are not tried again, so that no test waits.
    """
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with serve(behind) as stand_in:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": stand_in.url, "AWS_MAX_ATTEMPTS": "1"}.items():
            monkeypatch.setenv(name, value)
        yield stand_in
