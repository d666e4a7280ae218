"""How the API server is reached: the ServiceAccount's files in a pod, else a kubeconfig.

The one place that touches `kubernetes.aio`. Projected tokens are rotated by the kubelet: the file
is read again every minute, and at once when the server refuses the token.
"""

from __future__ import annotations

import os
import ssl
import urllib.request
from typing import Any

import aiohttp
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import ConfigException, load_kube_config
from kubernetes.aio.config.incluster_config import (
    SERVICE_CERT_FILENAME,
    SERVICE_HOST_ENV_NAME,
    SERVICE_TOKEN_FILENAME,
    InClusterConfigLoader,
)

from lamella_contract.errors import InvalidConfig
from lamella_operator.reconciling.client import Answer

CONNECT_S = 5.0  # to open a connection
BEARER = "BearerToken"


class Access:
    """A `Transport` over the library's REST layer."""

    def __init__(self, configuration: Configuration, parallel: int = 64) -> None:
        configuration.connection_pool_maxsize = parallel
        configuration.retries = None  # the client above repeats, and counts
        # The chain and the name are verified all the same. Strict is Python 3.13's own idea: many
        # clusters' CA certificates lack the extensions that it wants.
        configuration.disable_strict_ssl_verification = True
        # The environment says how to reach the server only if it names a proxy; to look for one
        # (and for ~/.netrc) at each request would be an eighth of all work.
        self._proxied = bool(urllib.request.getproxies())
        configuration.client_session_kwargs = {"trust_env": self._proxied}
        self._configuration = configuration
        self._rest = RESTClientObject(configuration)

    async def send(
        self, method: str, path: str, headers: dict[str, str], body: object, timeout_s: float
    ) -> Answer:
        """One request; the connection is taken from a pool."""
        try:
            token = await self._configuration.get_api_key_with_prefix(BEARER)
        except ConfigException as error:  # the token's file is away for a moment
            raise OSError(str(error)) from error
        if token:
            headers["Authorization"] = token
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        url = self._configuration.host.rstrip("/") + path
        try:
            response = await self._rest.request(  # type: ignore[no-untyped-call]
                method, url, headers=headers, body=body, _request_timeout=timeout
            )
            data = await response.read()
        except aiohttp.ClientError as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        return Answer(response.status, data, _seconds(response.headers.get("Retry-After")))

    async def renew_credentials(self) -> None:
        """Forget the token, so that the next request reads it from its file."""
        renew = getattr(self._configuration, "lamella_renew", None)
        if renew is not None:
            renew()

    async def open_session(self, **more: Any) -> tuple[str, aiohttp.ClientSession]:
        """The server's address and a session for whoever watches, who must close it.

        It has the token as it is now; a rotated one takes another session. ``more`` is for
        `aiohttp.ClientSession`.
        """
        await self.renew_credentials()
        token = await self._configuration.get_api_key_with_prefix(BEARER)
        connector = aiohttp.TCPConnector(limit=0, ssl=self._rest.ssl_context)
        session = aiohttp.ClientSession(
            connector=connector,
            headers={"Authorization": token} if token else {},
            trust_env=self._proxied,
            **more,
        )
        return self._configuration.host, session

    async def close(self) -> None:
        await self._rest.close()


async def connect(
    *,
    kubeconfig: str = "",
    token_file: str = SERVICE_TOKEN_FILENAME,
    ca_file: str = SERVICE_CERT_FILENAME,
) -> Access:
    """Access to the cluster this runs in, or to the one that ``kubeconfig`` names.

    Raises `InvalidConfig` when there is neither.
    """
    configuration = Configuration()
    try:
        if not kubeconfig and SERVICE_HOST_ENV_NAME in os.environ:
            _in_cluster(configuration, token_file, ca_file)
        else:
            path = kubeconfig or os.environ.get("KUBECONFIG") or None
            await load_kube_config(  # type: ignore[no-untyped-call]
                config_file=path, client_configuration=configuration
            )
        return Access(configuration)
    except (ConfigException, OSError, ssl.SSLError) as error:
        raise InvalidConfig(f"no way to the API server: {error}") from error


def _in_cluster(configuration: Configuration, token_file: str, ca_file: str) -> None:
    loader: Any = InClusterConfigLoader(  # type: ignore[no-untyped-call]
        token_filename=token_file, cert_filename=ca_file
    )
    loader.load_and_set(configuration)

    def renew() -> None:
        loader._read_token_file()  # the library has no public way to say "now"

    configuration.lamella_renew = renew


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; a date (which the API server never sends) is taken for one."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        return 1.0
