"""Writes what was found: the status by server-side apply, and one Event per transition.

An Event's name follows from the model's version and its words, so that an operator that is killed
between writing an Event and the status writes the same one again, which changes nothing.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from lamella_contract import names
from lamella_operator.reconciling.client import Client, Document
from lamella_operator.reconciling.failures import ApiError
from lamella_operator.reconciling.kinds import EVENT, MODEL
from lamella_operator.reconciling.parse import mapping, text
from lamella_operator.views import ModelView

log = logging.getLogger(__name__)

MOST_WORDS = 1000  # characters of an Event's message; the server takes 1024


class EventLine(Protocol):
    """One transition in words; ``type`` is Normal or Warning."""

    @property
    def type(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def message(self) -> str: ...


async def write_status(client: Client, model: ModelView, status: Document) -> None:
    """Replaces the status; the UID is a precondition. Raises `ApiError`.

    The echo is no news where nothing but the status differs from the ``model`` that was seen: what
    a decision takes from a status it has known since before it was written.
    """
    manifest: Document = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": model.name, "namespace": model.namespace, "uid": model.uid},
        "status": status,
    }
    now = await client.apply(MODEL, model.namespace, model.name, manifest, sub="status")
    meta = mapping(now, "metadata")
    same = (
        meta.get("generation") == model.generation
        and mapping(meta, "annotations") == model.annotations
        and "deletionTimestamp" not in meta
    )
    if same:
        client.wrote(model.uid, text(meta, "resourceVersion"))


async def post_events(
    client: Client, model: ModelView, version: str, lines: Sequence[EventLine], now_s: float
) -> None:
    """Best effort: an Event that is not taken is logged and forgotten."""
    for line in lines:
        try:
            await client.create(EVENT, model.namespace, event(model, version, line, now_s))
        except ApiError as error:
            if not error.already_exists:
                log.warning("an event was not taken", extra={"said": str(error)})


def event(model: ModelView, version: str, line: EventLine, now_s: float) -> Document:
    """A core/v1 Event about ``model`` as it was at resourceVersion ``version``."""
    identity = "\n".join((model.uid, version, line.type, line.reason, line.message))
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    stamp = datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    about: dict[str, Any] = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": model.name,
        "namespace": model.namespace,
        "uid": model.uid,
        "resourceVersion": version,
    }
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{model.name}.{digest}", "namespace": model.namespace},
        "involvedObject": about,
        "type": line.type,
        "reason": line.reason,
        "message": line.message[:MOST_WORDS],
        "source": {"component": names.MANAGER},
        "reportingComponent": names.MANAGER,
        "reportingInstance": names.MANAGER,
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }
