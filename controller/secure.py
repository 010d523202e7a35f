"""Who may read the metrics: those whom the cluster knows by their token, and allows.

The API server reviews the token (TokenReview), then whether its user may use the path with the method as verb
(SubjectAccessReview on a non-resource URL: ``get /metrics``, ``post /wake``). Answers are remembered as long
as controller-runtime's filter remembers them. Where the API server gives no answer nobody is let in.

The controller's account needs ``create`` on ``tokenreviews.authentication.k8s.io`` and
``subjectaccessreviews.authorization.k8s.io``.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from controller.errors import ClusterError
from controller.serve import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

K = TypeVar("K")
V = TypeVar("V")

LOGGER = logging.getLogger("fleetopt.controller")

_TIMEOUT_S = 10.0
_TOKEN_S, _ALLOWED_S, _DENIED_S = 60.0, 300.0, 30.0
_MOST_REMEMBERED = 1000
_FORBIDDEN = 403


@dataclass(frozen=True)
class User:
    """Whom a token stands for.

    Attributes
    ----------
    name, uid : str
    groups : tuple of str
    extra : tuple of (str, tuple of str)
        What else the cluster knows, sorted by name.
    """

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


class Reviewer(Protocol):
    """Who knows; both raise ClusterError when there is no answer."""

    def user(self, token: str) -> User | None:
        """Return whom a token stands for; None: nobody."""

    def may(self, user: User, verb: str, path: str) -> bool:
        """Return whether a user may."""


class ClusterReviewer:
    """The API server.

    Parameters
    ----------
    api : ApiClient
    """

    def __init__(self, api: client.ApiClient) -> None:
        self._authentication = client.AuthenticationV1Api(api)
        self._authorization = client.AuthorizationV1Api(api)

    def user(self, token: str) -> User | None:
        """Return whom a token stands for; None: nobody."""
        review = client.V1TokenReview(spec=client.V1TokenReviewSpec(token=token))
        with _reviewing("tokenreviews"):
            status = self._authentication.create_token_review(review, _request_timeout=_TIMEOUT_S).status
        if status is None or not status.authenticated or status.user is None:
            return None
        known = status.user
        extra = sorted((name, tuple(values)) for name, values in (known.extra or {}).items())
        return User(known.username or "", known.uid or "", tuple(known.groups or ()), tuple(extra))

    def may(self, user: User, verb: str, path: str) -> bool:
        """Return whether a user may."""
        spec = client.V1SubjectAccessReviewSpec(
            user=user.name,
            uid=user.uid or None,
            groups=list(user.groups),
            extra={name: list(values) for name, values in user.extra},
            non_resource_attributes=client.V1NonResourceAttributes(path=path, verb=verb),
        )
        review = client.V1SubjectAccessReview(spec=spec)
        with _reviewing("subjectaccessreviews"):
            answer = self._authorization.create_subject_access_review(review, _request_timeout=_TIMEOUT_S)
        return answer.status is not None and answer.status.allowed


@contextmanager
def _reviewing(resource: str) -> Iterator[None]:
    try:
        yield
    except ApiException as error:
        if error.status == _FORBIDDEN:
            raise ClusterError(f"the controller's account may not create {resource}") from error
        raise ClusterError(f"create {resource}: {error.status} {error.reason}") from error
    except (HTTPError, OSError) as error:
        raise ClusterError(f"create {resource}: the Kubernetes API does not answer") from error


class ClusterGate:
    """Lets in whom the reviewer allows.

    Parameters
    ----------
    reviewer : Reviewer
    clock : callable
        Seconds on a clock that does not jump.
    """

    def __init__(self, reviewer: Reviewer, clock: Callable[[], float] = time.monotonic) -> None:
        self._reviewer = reviewer
        self._users: _Remembered[bytes, User | None] = _Remembered(clock)
        self._allowed: _Remembered[tuple[User, str, str], bool] = _Remembered(clock)
        self._said = ""
        # One review at a time: who has many tokens to try does not become a load on the API server.
        self._lock = threading.Lock()

    def __call__(self, authorization: str, method: str, path: str) -> Answer | None:
        """Return the refusal of a request, or None.

        Parameters
        ----------
        authorization : str
            The header of that name.
        method, path : str
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return _unauthorized("a bearer token is needed")
        try:
            with self._lock:
                user = self._user(token.strip())
                allowed = user is not None and self._may(user, method.lower(), path)
        except ClusterError as error:
            return self._no_answer(str(error))
        self._said = ""
        if user is None:
            return _unauthorized("the token is not valid")
        if not allowed:
            return Answer(403, f"{user.name} may not {method.lower()} {path}\n".encode())
        return None

    def _user(self, token: str) -> User | None:
        # What is remembered for a while should not be a secret.
        digest = hashlib.sha256(token.encode()).digest()
        if digest not in self._users:
            self._users.put(digest, self._reviewer.user(token), _TOKEN_S)
        return self._users[digest]

    def _may(self, user: User, verb: str, path: str) -> bool:
        what = (user, verb, path)
        if what not in self._allowed:
            allowed = self._reviewer.may(user, verb, path)
            self._allowed.put(what, allowed, _ALLOWED_S if allowed else _DENIED_S)
        return self._allowed[what]

    def _no_answer(self, reason: str) -> Answer:
        if reason != self._said:
            self._said = reason
            LOGGER.warning("nobody can be let in to the metrics: %s", reason)
        return Answer(503, f"who may read this is not known: {reason}\n".encode())


class _Remembered(Generic[K, V]):
    """Values that count for a time; of too many the oldest go."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._values: OrderedDict[K, tuple[V, float]] = OrderedDict()

    def __contains__(self, key: K) -> bool:
        return key in self._values and self._clock() < self._values[key][1]

    def __getitem__(self, key: K) -> V:
        return self._values[key][0]

    def put(self, key: K, value: V, for_s: float) -> None:
        self._values.pop(key, None)
        self._values[key] = (value, self._clock() + for_s)
        if len(self._values) > _MOST_REMEMBERED:
            self._values.popitem(last=False)


def _unauthorized(why: str) -> Answer:
    return Answer(401, f"{why}\n".encode(), headers={"WWW-Authenticate": "Bearer"})
