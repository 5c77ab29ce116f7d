"""Asking AWS, as the AWS CLI would: credentials, profiles, endpoints and proxies are boto3's own business.

Every answer that is none becomes an error of ours, which says what is missing or what to do, and holds no secret.
Three of them are for callers that can go on: NotThere; Throttled, when nothing was done; Lost, when nobody knows.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from layerkit import __version__
from layerkit.environments import Environment
from layerkit.errors import ConfigurationError, ExternalError, LayerkitError
from layerkit.processes import without_secrets


class AwsError(ExternalError):
    """AWS did not do what it was asked."""


class NotThere(AwsError):
    """What was asked for does not exist."""


class Throttled(AwsError):
    """There were too many requests, so this one was not looked at."""


class Lost(AwsError):
    """No answer came, or one of a server that failed: it may have been done all the same."""


@dataclass(frozen=True)
class Identity:
    """Whose the credentials are."""

    account: str
    arn: str


ATTEMPTS = 5
"""How often a call is tried in all where neither AWS_MAX_ATTEMPTS nor the profile says so."""

# The rest of an upload of 50 MiB, and what AWS needs to unpack it.
_ONCE_SECONDS = 300.0


class Aws:
    """The clients of one environment, for several threads.

    Raises ConfigurationError where the configuration of AWS can't be used, and AwsError otherwise. Calls are tried
    again by botocore, unless they are made ``once``.
    """

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self._lock = threading.Lock()
        self._clients: dict[tuple[str, str, bool], Any] = {}
        with self._explaining("", ""):
            self._session = _session(environment)
            try:
                self._attempts = self._session.get_config_variable("max_attempts") or ATTEMPTS
            except ValueError as error:
                raise ConfigurationError(f"AWS_MAX_ATTEMPTS is no number: {error}.") from error

    def call(self, service: str, region: str, method: str, *, once: bool = False, **parameters: Any) -> dict[str, Any]:
        """One operation, named as boto3 does (``get_layer_version``), and its answer; ``once``: never tried again."""
        with self._explaining(service, region, method):
            client = self._client(service, region, once)
            answer: dict[str, Any] = getattr(client, method)(**parameters)
            return answer

    def pages(self, service: str, region: str, method: str, key: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        """What a listing has under ``key``, over all of its pages."""
        with self._explaining(service, region, method):
            for page in self._client(service, region, once=False).get_paginator(method).paginate(**parameters):
                yield from page.get(key, ())

    def identity(self) -> Identity:
        """Whose the credentials are, as STS says."""
        answer = self.call("sts", self.environment.regions[0], "get_caller_identity")
        return Identity(answer["Account"], answer["Arn"])

    def _client(self, service: str, region: str, once: bool) -> Any:
        from botocore.config import Config

        config = Config(
            connect_timeout=10,
            read_timeout=_ONCE_SECONDS if once else 60,
            max_pool_connections=32,
            # The mode is AWS_RETRY_MODE's or the profile's, else "standard".
            retries={"total_max_attempts": 1 if once else self._attempts},
            user_agent_extra=f"layerkit/{__version__}",
        )
        with self._lock:  # a session is not for several threads, its clients are
            key = (service, region, once)
            if key not in self._clients:
                try:
                    self._clients[key] = self._session.create_client(service, region_name=region, config=config)
                except ValueError as error:  # of an address that is none; botocore has no class of its own for it
                    raise ConfigurationError(f"AWS can't be asked: {error}.", "Check AWS_ENDPOINT_URL.") from error
            return self._clients[key]

    @contextmanager
    def _explaining(self, service: str, region: str, method: str = "") -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        try:
            yield
        except ClientError as error:
            raise _refused(error, service, region, self.environment) from error
        except (BotoCoreError, ResponseParserError) as error:
            raise _failed(error, _action(service, method), region, self.environment) from error


def check_account(aws: Aws) -> Identity:
    """Whose the credentials are; ConfigurationError where they are not of the environment's account."""
    environment, identity = aws.environment, aws.identity()
    if identity.account != environment.account:
        raise ConfigurationError(
            f"the environment {environment.name} is the account {environment.account}, and the credentials are of the "
            f"account {identity.account} ({identity.arn}). Nothing was changed.",
            f"Choose other credentials (AWS_PROFILE, or {environment.where}.profile), or another --environment.",
        )
    return identity


# ---- credentials ----


def _session(environment: Environment) -> Any:
    """A session of botocore with the environment's profile, and its role assumed for as long as it takes."""
    import botocore.session

    # Without a profile of ours botocore looks at AWS_PROFILE.
    session = botocore.session.Session(profile=environment.profile or None)
    session.get_scoped_config()  # raises where there is no such profile
    if not environment.role:
        return session
    own = botocore.session.Session(profile=environment.profile or None)
    own.register_component("credential_provider", _Role(session, environment))
    return own


class _Role:
    """What botocore asks for credentials: those of a role, fetched again before they expire."""

    def __init__(self, session: Any, environment: Environment) -> None:
        self._session, self._environment = session, environment

    def load_credentials(self) -> Any:
        from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials
        from botocore.exceptions import NoCredentialsError

        source = self._session.get_credentials()
        if source is None:
            raise NoCredentialsError

        def client(service: str, **credentials: Any) -> Any:
            return self._session.create_client(service, region_name=self._environment.regions[0], **credentials)

        fetcher = AssumeRoleCredentialFetcher(
            client, source, self._environment.role, extra_args={"RoleSessionName": "layerkit"}
        )
        return DeferredRefreshableCredentials(method="assume-role", refresh_using=fetcher.fetch_credentials)


# ---- errors ----

_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired"}
_INVALID = {"InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch", "InvalidAccessKeyId"}
_INVALID |= {"AuthFailure", "IncompleteSignature", "InvalidSignatureException", "MissingAuthenticationToken"}
_DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "UnauthorizedAccess", "403", "Forbidden"}
_THROTTLED = {"TooManyRequestsException", "Throttling", "ThrottlingException", "ThrottledException", "SlowDown"}
_THROTTLED |= {"RequestLimitExceeded", "RequestThrottled", "RequestThrottledException", "429"}
_NOT_THERE = {"ResourceNotFoundException", "ParameterNotFound", "NoSuchKey", "NotFound", "404"}

# What botocore raises where the AWS CLI's own files or variables are wrong, by the names of its exceptions.
_CONFIGURATION = {"ProfileNotFound", "ConfigParseError", "ConfigNotFound", "InvalidConfigError", "InvalidRegionError"}
_CONFIGURATION |= {"InfiniteLoopConfigError", "PartialCredentialsError", "UnknownCredentialError"}
_CONFIGURATION |= {"InvalidRetryModeError", "InvalidRetryConfigurationError", "InvalidIMDSEndpointError"}
_WITHOUT = {"NoCredentialsError", "CredentialRetrievalError", "NoAuthTokenError"}
_LOGGED_OUT = {"TokenRetrievalError", "SSOTokenLoadError", "UnauthorizedSSOTokenError", "SSOError", "LoginError"}
_LOGGED_OUT |= {"RefreshWithMFAUnsupportedError", "LoginRefreshRequired", "LoginTokenLoadError"}
# Nothing had been sent yet.
_UNREACHABLE = {"EndpointConnectionError", "ConnectTimeoutError", "ProxyConnectionError", "SSLError"}
_LOST = {"ReadTimeoutError", "ConnectionClosedError", "HTTPClientError", "ConnectionError", "ResponseStreamingError"}
_LOST |= {"ResponseParserError", "IncompleteReadError"}

# The operations whose permission has another name.
_PERMISSIONS = {"s3:HeadObject": "s3:GetObject", "s3:ListObjectsV2": "s3:ListBucket"}


def _action(service: str, method: str) -> str:
    """The permission that an operation needs, as IAM calls it: ``lambda:GetLayerVersion``."""
    name = f"{service}:{''.join(word.capitalize() for word in method.split('_'))}"
    return _PERMISSIONS.get(name, name)


def _refused(error: Any, service: str, region: str, environment: Environment) -> ExternalError:
    """What to say of an answer that is an error."""
    operation = error.operation_name
    # The role is assumed in the middle of whatever is called first.
    service = "sts" if operation == "AssumeRole" else service
    action = _PERMISSIONS.get(f"{service}:{operation}", f"{service}:{operation}")
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    what = f"{action} in {region}"
    if code in _EXPIRED:
        return _expired(environment)
    if code in _INVALID:
        return AwsError(
            f"AWS does not take the credentials of the environment {environment.name} ({code}).",
            f"Check the keys, {_source(environment)}, and this machine's clock.",
        )
    if code in _DENIED:
        return AwsError(
            f"{what} is denied to the credentials of the environment {environment.name}.",
            f"They need the permission {action}; docs/environments.md has those of each task.",
        )
    if code in _THROTTLED or status == 429:
        return Throttled(
            f"{what}: there are too many requests, AWS says, and that has not passed.",
            "Lambda takes 15 a second, all of an account and region together. Try again when less is going on.",
        )
    if status >= 500:
        return Lost(f"{what}: AWS has failed ({code or status}).", "Try again: what is done already is not done twice.")
    said = f"{what}: {_readable(str(error.response.get('Error', {}).get('Message') or code))}"
    if code in _NOT_THERE:
        return NotThere(said)
    return AwsError(said, f"AWS calls this {code}." if code else "")


def _failed(error: Exception, action: str, region: str, environment: Environment) -> LayerkitError:
    """What to say when there was no answer."""
    names = {kind.__name__ for kind in type(error).__mro__}
    reason = _readable(str(error))
    if names & _CONFIGURATION:
        return _misconfigured(reason, environment)
    if names & _WITHOUT:
        return AwsError(
            f"there are no credentials of AWS for the environment {environment.name}.",
            f"Log in (aws sso login), or set {_source(environment)}.",
        )
    if names & _LOGGED_OUT:
        return _expired(environment)
    if names & _UNREACHABLE:
        return AwsError(
            f"{action} in {region}: AWS can't be reached: {reason}",
            "Check the network, HTTPS_PROXY, AWS_ENDPOINT_URL, and whether there is such a region.",
        )
    if names & _LOST:
        return Lost(f"{action} in {region}: the connection was lost.", "Try again: what is done is not done twice.")
    return AwsError(f"{action} in {region}: {reason}" if action else reason)


def _misconfigured(reason: str, environment: Environment) -> ConfigurationError:
    return ConfigurationError(f"AWS can't be asked: {reason}", f"Check {_source(environment)} and the files in ~/.aws.")


def _expired(environment: Environment) -> AwsError:
    return AwsError(
        f"the credentials of the environment {environment.name} have expired.",
        "Log in again (aws sso login, or get new keys), then give the same command again.",
    )


def _source(environment: Environment) -> str:
    return f"{environment.where}.profile" if environment.profile else "AWS_PROFILE or the keys in the environment"


def _readable(text: str) -> str:
    """Of what AWS or botocore say: one line, of bounded length, without keys, tokens and signatures."""
    line = " ".join(without_secrets(text).split())
    line = re.sub(r"\b(AKIA|ASIA)[A-Z0-9]{8,}", "***", line)
    line = re.sub(r"(?i)\b(signature|x-amz-[a-z-]+|security[- ]?token|credential)=[^&\s]+", r"\1=***", line)
    return f"{line[:400].rstrip('.')}."
