"""Asking Prometheus: https or http, certificates, tokens that rotate, and a limit of time for every query."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import requests
from prometheus_api_client.exceptions import PrometheusApiClientException
from prometheus_api_client.prometheus_connect import PrometheusConnect
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.exceptions import InsecureRequestWarning
from urllib3.util.retry import Retry

from controller.errors import PrometheusError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from controller.settings import Prometheus

Vector = list[dict[str, Any]]


class Query(Protocol):
    """Evaluates PromQL now."""

    def __call__(self, promql: str) -> Vector:
        """Return the elements of the vector, as Prometheus writes them.

        Raises
        ------
        PrometheusError
            When there is no answer in time, or it is an error.
        """


class QueryRefusedError(PrometheusError):
    """Prometheus answered that it cannot evaluate the query."""


class _Token(AuthBase):
    """Bearer token, from its file for every request: tokens of service accounts rotate."""

    def __init__(self, token: str, path: str) -> None:
        self._token, self._path = token, path

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        token = Path(self._path).read_text().strip() if self._path else self._token
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        return request


class _NamedServer(HTTPAdapter):
    """Expects a certificate of another name than that of the URL."""

    def __init__(self, server_name: str) -> None:
        self._server_name = server_name
        super().__init__(max_retries=0)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool: Any) -> None:
        """As the adapter's, with the name."""
        pool |= {"server_hostname": self._server_name, "assert_hostname": self._server_name}
        super().init_poolmanager(connections, maxsize, block, **pool)


def connect(settings: Prometheus) -> AbstractContextManager[Query]:
    """Open a session for the queries of one pass.

    Parameters
    ----------
    settings : Prometheus
        The files it names are read again in every session.
    """
    return _session(settings)


@contextmanager
def _session(settings: Prometheus) -> Iterator[Query]:
    with requests.Session() as session:
        session.verify = False if settings.skip_verify else settings.ca_cert_path or True
        if settings.client_cert_path:
            session.cert = (settings.client_cert_path, settings.client_key_path or settings.client_cert_path)
        client = PrometheusConnect(
            url=settings.base_url,
            # The package annotates both more narrowly than the requests package that it hands them to.
            auth=_Token(settings.bearer_token, settings.token_path),  # type: ignore[arg-type]
            retry=Retry(total=0),
            session=session,
            timeout=settings.timeout_s,  # type: ignore[arg-type]
        )
        if settings.server_name:
            # After the client, which mounts an adapter of its own at this address.
            session.mount(settings.base_url, _NamedServer(settings.server_name))

        def query(promql: str) -> Vector:
            with warnings.catch_warnings():
                if settings.skip_verify:
                    # The user chose it; saying so for every query helps nobody.
                    warnings.simplefilter("ignore", InsecureRequestWarning)
                return _answer(client, promql, settings)

        yield query


def _answer(client: PrometheusConnect, promql: str, settings: Prometheus) -> Vector:
    try:
        answer = client.custom_query(promql, params={"timeout": f"{settings.timeout_s:g}s"})
    except PrometheusApiClientException as error:
        text = " ".join(str(error).split())[:300]
        if "HTTP Status Code 400" in text or "HTTP Status Code 422" in text:
            raise QueryRefusedError(f"Prometheus refuses {promql!r}: {text}") from error
        raise PrometheusError(f"Prometheus at {settings.base_url} answers: {text}") from error
    except requests.RequestException as error:
        raise PrometheusError(f"Prometheus at {settings.base_url} does not answer: {error}") from error
    except OSError as error:
        raise PrometheusError(f"a file for Prometheus cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise PrometheusError(f"what answers at {settings.base_url} is no Prometheus: {error!r}") from error
    if not isinstance(answer, list):
        raise PrometheusError(f"what answers at {settings.base_url} is no Prometheus: no vector")
    return answer
