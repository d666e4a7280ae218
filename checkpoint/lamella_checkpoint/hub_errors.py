"""What a hub's answers and a network's failures mean, as errors of ours that say what to do.

Knows HTTP status codes and huggingface_hub's exceptions; makes no request.
"""

from __future__ import annotations

import socket
import ssl
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import httpx2
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from lamella_contract.errors import (
    AuthRequired,
    CorruptModel,
    DownloadStalled,
    GatedModel,
    HubUnreachable,
    ModelError,
    ModelNotFound,
    RateLimited,
)

E = TypeVar("E", bound=BaseException)
_NO_CONNECTION = (httpx2.ConnectError, httpx2.ConnectTimeout)
RETRIED_STATUS = (408, 425, 500, 502, 503, 504)


class Mismatch(Exception):
    """A hub's answer is not what was asked for: another range, length, file or commit."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request was about, for messages: repository, revision, and a file or nothing."""

    repo: str
    revision: str
    endpoint: str
    file: str = ""
    has_token: bool = False

    def __str__(self) -> str:
        return f"hf://{self.repo}@{self.revision}" + (f", {self.file}" if self.file else "")


def status_error(status: int, headers: Mapping[str, str], asked: Asked) -> ModelError:
    """The error for an answer of 400 or more."""
    code = headers.get("X-Error-Code", "")
    if status == 403 or code == "GatedRepo":
        return GatedModel(
            f"{asked}: the hub refuses access ({status}): accept the model's conditions at "
            f"{asked.endpoint}/{asked.repo} with the account of the token, or use another token"
        )
    if status == 401:
        if asked.has_token:
            return AuthRequired(
                f"{asked}: the hub does not take the token (401), or there is no such model: "
                "check HF_TOKEN and the model's name"
            )
        return AuthRequired(
            f"{asked}: the hub wants a token (401), or there is no such model: set HF_TOKEN (or "
            "run `hf auth login`) and check the model's name"
        )
    if status in (404, 410):
        what = {"RevisionNotFound": "revision", "EntryNotFound": "file"}.get(code, "")
        what = what or ("file" if asked.file else "model or revision")
        return ModelNotFound(f"{asked}: no such {what} at {asked.endpoint}")
    if status == 429:
        return RateLimited(
            f"{asked}: the hub asks to slow down (429): try again later"
            + ("" if asked.has_token else ", or set HF_TOKEN for a higher limit")
        )
    if status == 416:
        return CorruptModel(f"{asked}: the hub says that the range lies outside the file (416)")
    return HubUnreachable(f"{asked}: {asked.endpoint} answered {status}")


def network_error(error: Exception, asked: Asked, stall_timeout_s: float) -> ModelError:
    """The error for a request that got no (complete) answer, once the tries are used up."""
    if isinstance(error, ModelError):
        return error
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return status_error(error.response.status_code, error.response.headers, asked)
    if isinstance(error, httpx2.ReadTimeout):
        return DownloadStalled(
            f"{asked}: no byte came for {stall_timeout_s:g} s, several times over: try again, it "
            "goes on where it stopped"
        )
    if isinstance(error, Mismatch):
        return CorruptModel(f"{asked}: {error}")
    if isinstance(error, OfflineModeIsEnabled):
        return HubUnreachable(f"{asked}: not in the cache, and HF_HUB_OFFLINE is set")
    return HubUnreachable(f"{asked}: {_unreachable(error, asked.endpoint)}")


def may_pass(error: Exception) -> bool:
    """Whether trying again may help."""
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return error.response.status_code in RETRIED_STATUS
    if _cause(error, ssl.SSLCertVerificationError) is not None:
        return False
    return isinstance(error, Mismatch | httpx2.TransportError)


def _unreachable(error: Exception, endpoint: str) -> str:
    """Why no connection was made, by what has to be mended: trust, proxy, names or network."""
    why = f"({type(error).__name__}: {error})"
    if (tls := _cause(error, ssl.SSLError)) is not None:
        return (
            f"the certificate of {endpoint} is not trusted or not spoken to ({tls}): give its "
            "authority's certificate (SSL_CERT_FILE), or check HF_ENDPOINT"
        )
    if _cause(error, FileNotFoundError) is not None:  # of all files, only this one is opened
        return f"the certificates in SSL_CERT_FILE cannot be read {why}"
    proxy = _proxy(endpoint)
    if isinstance(error, httpx2.ProxyError) or (proxy and isinstance(error, _NO_CONNECTION)):
        return f"the proxy {proxy or ''} does not connect to {endpoint} {why}: check HTTPS_PROXY"
    if _cause(error, socket.gaierror) is not None:
        host = urlsplit(endpoint).hostname
        return f"the name {host} cannot be looked up {why}: check DNS, HF_ENDPOINT or a proxy"
    return (
        f"{endpoint} cannot be reached {why}: check the network and HF_ENDPOINT, or set "
        "HF_HUB_OFFLINE=1 to use what is cached"
    )


def _proxy(endpoint: str) -> str:
    """``host:port`` of the proxy for ``endpoint``, never its password; "" where there is none."""
    parts = urlsplit(endpoint)
    proxies = urllib.request.getproxies()
    stated = proxies.get(parts.scheme) or proxies.get("all") or ""
    if not stated or urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    return stated.rpartition("@")[2].rpartition("//")[2].rstrip("/")


def _cause(error: BaseException | None, kind: type[E]) -> E | None:
    """The first error of ``kind`` in the chain that led to ``error``."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that a 429 asks to wait, from Retry-After or the hub's RateLimit header."""
    stated = headers.get("Retry-After", "").strip()
    if stated.replace(".", "", 1).isdigit():
        return float(stated)
    for item in headers.get("RateLimit", "").split(";"):
        key, _, value = item.strip().partition("=")
        if key == "t" and value.isdigit():  # "api";r=0;t=55: seconds until the window ends
            return float(value)
    return None
