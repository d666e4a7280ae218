"""Fetches byte ranges from a hub and does not give up lightly.

Knows HTTP ranges, retries and stalls; knows no cache and no tensors. A transfer that is cut goes on
from the byte reached; one that brings nothing for ``stall_timeout_s`` is taken up again; only tries
that brought no byte count towards giving up.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx2
from huggingface_hub import hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

from lamella_checkpoint.hub_errors import (
    RETRIED_STATUS,
    Asked,
    Mismatch,
    may_pass,
    network_error,
    retry_after_s,
    status_error,
)
from lamella_checkpoint.progress import Progress
from lamella_contract.errors import ModelError

log = logging.getLogger(__name__)
T = TypeVar("T")
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """``tries`` in a row without a byte, pauses from ``first_pause_s`` doubling up to
    ``longest_pause_s``; a 429 that asks for more than ``longest_rate_wait_s`` is an error."""

    tries: int = 6
    first_pause_s: float = 0.5
    longest_pause_s: float = 20.0
    longest_rate_wait_s: float = 120.0

    def pause_s(self, failures: int) -> float:
        """The pause after that many failures (from 1), with jitter so that stages spread out."""
        full = min(self.longest_pause_s, self.first_pause_s * 2.0 ** (failures - 1))
        return full * random.uniform(0.5, 1.0)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at a commit: its size, and the hub's ETag (git SHA-1, or SHA-256 of a large file)."""

    name: str
    size: int
    etag: str = ""


@dataclass(slots=True)
class Connection:
    """One repository at one revision of one hub, and how patiently it is asked.

    ``sleep`` waits the given seconds; tests give one that only takes notes.
    """

    repo: str
    revision: str
    endpoint: str
    token: str | None
    stall_timeout_s: float = 30.0
    connect_timeout_s: float = 10.0
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    progress: Progress = field(default_factory=Progress)
    sleep: Callable[[float], None] = time.sleep
    # Where the hub redirected a file to (a signed address): saves a round trip per range.
    _moved: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def asked(self, file: str = "") -> Asked:
        return Asked(self.repo, self.revision, self.endpoint, file, bool(self.token))

    def call(self, request: Callable[[], T], asked: Asked) -> T:
        """``request()``, tried again while that may help; raises errors of ours."""
        failures = 0
        while True:
            try:
                return request()
            except ModelError:
                raise
            except Exception as error:  # whatever an HTTP library raises becomes one of ours
                failures += 1
                self._pause_or_raise(error, failures, asked)

    def _pause_or_raise(self, error: Exception, failures: int, asked: Asked) -> None:
        wait_s = self._rate_wait_s(error)
        if wait_s is None:
            if failures >= self.policy.tries or not may_pass(error):
                raise network_error(error, asked, self.stall_timeout_s) from error
            wait_s = self.policy.pause_s(failures)
        elif failures >= self.policy.tries or wait_s > self.policy.longest_rate_wait_s:
            raise network_error(error, asked, self.stall_timeout_s) from error
        self.progress.retried()
        log.warning(
            "a request to the hub failed and is tried again",
            extra={"asked": str(asked), "error": repr(error), "wait_s": round(wait_s, 2)},
        )
        self.sleep(wait_s)

    def _rate_wait_s(self, error: Exception) -> float | None:
        """Seconds to wait when the error is a 429; None when it is something else."""
        response = getattr(error, "response", None)
        if response is None or response.status_code != 429:
            return None
        stated = retry_after_s(response.headers)
        return self.policy.longest_pause_s if stated is None else stated

    def fetch(self, file: RemoteFile, start: int, end: int, sink: Callable[[bytes], None]) -> None:
        """Give ``sink`` the bytes ``[start, end)`` of a file, in order, each exactly once."""
        reached, failures, asked = start, 0, self.asked(file.name)
        while reached < end:
            before = reached
            try:
                for chunk in self._stream(file, reached, end):
                    sink(chunk)
                    reached += len(chunk)
                if reached < end:
                    raise Mismatch(f"the answer ended at byte {reached} of {end}")
            except ModelError:
                raise
            except OSError as error:
                if not isinstance(error, HfHubHTTPError):
                    raise  # the sink's
                failures = self._failed(error, failures, before, reached, asked)
            except (httpx2.HTTPError, Mismatch) as error:
                failures = self._failed(error, failures, before, reached, asked)

    def _failed(
        self, error: Exception, failures: int, before: int, reached: int, asked: Asked
    ) -> int:
        """Pause after a failed try, or raise; how many tries in a row have brought nothing."""
        failures = 1 if reached > before else failures + 1
        self._pause_or_raise(error, failures, asked)
        return failures

    def _stream(self, file: RemoteFile, start: int, end: int) -> Iterator[bytes]:
        """The chunks of one request for ``[start, end)``, never more than that."""
        left = end - start
        with self._request(file, start, end) as response:
            self._check(response, file, start, end)
            for chunk in response.iter_raw():
                if len(chunk) > left:
                    raise Mismatch("the hub sent more bytes than asked for")
                left -= len(chunk)
                yield chunk

    @contextmanager
    def _request(self, file: RemoteFile, start: int, end: int) -> Iterator[Any]:
        """An open answer of status 200 or 206, from the file's address or where it moved to."""
        wanted = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        timeout = httpx2.Timeout(self.stall_timeout_s, connect=self.connect_timeout_s)
        with self._lock:
            moved = self._moved.get(file.name)
        if moved is not None:
            # No token: the address is signed, and may be another company's.
            with get_session().stream("GET", moved, headers=wanted, timeout=timeout) as response:
                if response.status_code < 400:
                    yield response
                    return
            with self._lock:  # the signature ran out: ask the hub anew
                self._moved.pop(file.name, None)
        url = hf_hub_url(self.repo, file.name, revision=self.revision, endpoint=self.endpoint)
        headers = {**build_hf_headers(token=self.token or False), **wanted}
        with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
            self._raise_for(response, file)
            if response.history:
                with self._lock:
                    self._moved[file.name] = str(response.url)
            yield response

    def _raise_for(self, response: Any, file: RemoteFile) -> None:
        status = response.status_code
        if status < 400:
            return
        if status in RETRIED_STATUS or status == 429:
            raise HfHubHTTPError(f"the hub answered {status}", response=response)
        raise status_error(status, response.headers, self.asked(file.name))

    def _check(self, response: Any, file: RemoteFile, start: int, end: int) -> None:
        """The answer is the range of the file at the commit that was asked for."""
        for hop in (*response.history, response):
            commit = hop.headers.get("X-Repo-Commit")
            if commit and commit != self.revision:
                raise Mismatch(f"the hub answered with commit {commit}, want {self.revision}")
            tag = hop.headers.get("X-Linked-Etag")
            if tag is None and str(hop.url).startswith(f"{self.endpoint}/"):
                tag = hop.headers.get("ETag")  # storage elsewhere has ETags of its own
            if tag and file.etag and bare_etag(tag) != file.etag:
                raise Mismatch(f"the hub answered with ETag {tag}, want {file.etag}")
        if response.status_code == 200:
            if start == 0 and end == file.size:
                return
            raise Mismatch("the hub sent the whole file when a range was asked for")
        stated = response.headers.get("Content-Range", "")
        match = _RANGE.fullmatch(stated)
        if match is None or (int(match[1]), int(match[2])) != (start, end - 1):
            raise Mismatch(f"the hub answered with {stated!r}, want bytes {start}-{end - 1}")
        if match[3] != "*" and int(match[3]) != file.size:
            raise Mismatch(f"the hub says the file has {match[3]} bytes, want {file.size}")


def bare_etag(tag: str) -> str:
    """An ETag without quotes and weakness mark."""
    return tag.removeprefix("W/").strip('"')
