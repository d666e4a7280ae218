"""Looks at a pipeline from outside: each stage's /status and whether the gateway takes requests.

Knows addresses and JSON, nothing of processes or terminals. A thread of its own asks, because a
stopped stage makes an answer late and the supervisor must not wait for it; `latest` never blocks.
"""

import http.client
import json
import threading
from dataclasses import dataclass, field
from typing import Any

from lamella_contract import names

_TIMEOUT_S = 0.5
LOADING_INTERVAL_S = 0.1
SERVING_INTERVAL_S = 2.0  # each look costs the cores that compute about 3 ms


@dataclass(frozen=True, slots=True)
class StageStatus:
    """What one stage says of itself; `document` is its whole /status."""

    stage: int
    state: str = "starting"
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_per_s: float = 0.0
    eta_s: float | None = None
    error: str = ""
    pid: int = 0
    document: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, stage: int, document: dict[str, Any]) -> "StageStatus":
        """Reads the fields it knows, whatever else stands there: the stage may be newer than
        this."""
        eta = document.get("eta_s")
        return cls(
            stage=stage,
            state=str(document.get("state", "starting")),
            bytes_done=int(document.get("bytes_done") or 0),
            bytes_total=int(document.get("bytes_total") or 0),
            bytes_per_s=float(document.get("bytes_per_s") or 0.0),
            eta_s=None if eta is None else float(eta),
            error=str(document.get("error") or ""),
            pid=int(document.get("pid") or 0),
            document=document,
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The pipeline at one moment; `reason` says why it is not ready."""

    stages: tuple[StageStatus, ...]
    ready: bool = False
    reason: str = ""


def get(host: str, port: int, path: str, timeout_s: float = _TIMEOUT_S) -> tuple[int, bytes] | None:
    """Status and body of one GET; None when nobody answers in time."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def get_json(host: str, port: int, path: str) -> dict[str, Any] | None:
    """The JSON object of one GET; None when there is no answer or it is something else."""
    answer = get(host, port, path)
    if answer is None or answer[0] != 200:
        return None
    try:
        document = json.loads(answer[1])
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def look(stage_ports: tuple[int, ...], gateway_host: str, gateway_port: int) -> Snapshot:
    """Asks every stage and the gateway once."""
    stages = []
    for stage, port in enumerate(stage_ports):
        document = get_json(names.LOOPBACK, port, names.PATH_STATUS)
        stages.append(
            StageStatus(stage) if document is None else StageStatus.parse(stage, document)
        )
    answer = get(gateway_host, gateway_port, names.PATH_SERVING)
    if answer is None:
        return Snapshot(tuple(stages), False, "the gateway does not answer yet")
    ready = answer[0] == 200
    return Snapshot(tuple(stages), ready, "" if ready else _reason(answer[1]))


def _reason(body: bytes) -> str:
    """Why the gateway is not ready, in its own words."""
    try:
        return str(json.loads(body)["reason"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace").strip()


class Watcher:
    """Looks again and again from a thread; `latest` is the last thing seen."""

    def __init__(self, stage_ports: tuple[int, ...], gateway_host: str, gateway_port: int) -> None:
        self._target = (stage_ports, gateway_host, gateway_port)
        self.wants_pipelines = False
        self.pipelines: dict[str, dict[str, Any]] = {}
        """What the gateway says of each pipeline, by address; looked at while it is wanted."""
        self._enough = threading.Event()
        self.latest = Snapshot(tuple(StageStatus(k) for k in range(len(stage_ports))))
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()

    def follow(self, stage_ports: tuple[int, ...]) -> None:
        """From now on these are the stages."""
        self._target = (stage_ports, *self._target[1:])

    def _run(self) -> None:
        while not self._enough.is_set():
            self.latest = look(*self._target)
            wanted = self.wants_pipelines
            self.pipelines = self._pipelines() if wanted else {}
            calm = self.latest.ready and not wanted
            self._enough.wait(SERVING_INTERVAL_S if calm else LOADING_INTERVAL_S)

    def _pipelines(self) -> dict[str, dict[str, Any]]:
        document = get_json(*self._target[1:], names.PATH_STATUS) or {}
        return {str(told["address"]): told for told in document.get("pipelines", ())}
