"""The API server's JSON as views: the one place where a cluster's documents are taken apart.

Nothing here raises on an odd document: a field of the wrong type is absent, an object without name
or UID is skipped and logged, a manifest that does not parse is a model with a ``problem``. Knows no
client.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from lamella_contract import names
from lamella_contract.errors import LamellaError
from lamella_contract.spec import ShardedModel, parse
from lamella_operator.views import (
    Exit,
    LiveObject,
    Manifest,
    ModelView,
    PodView,
    RevisionView,
    kind_name,
)

log = logging.getLogger(__name__)

T = TypeVar("T")


def mapping(value: object, *keys: str) -> Mapping[str, Any]:
    """The object at ``keys`` inside ``value``; empty where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def text(value: object, *keys: str) -> str:
    """The string at ``keys`` inside ``value``; "" where there is none."""
    found = mapping(value, *keys[:-1]).get(keys[-1]) if keys else value
    return found if isinstance(found, str) else ""


def number(value: object, *keys: str) -> int:
    """The whole number at ``keys``, also one written as a string; 0 where there is none."""
    found = mapping(value, *keys[:-1]).get(keys[-1]) if keys else value
    if isinstance(found, str) and found.isdecimal() and len(found) < 16:
        return int(found)
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


def items(value: object, key: str) -> list[Mapping[str, Any]]:
    """The objects of the list at ``key``."""
    found = mapping(value).get(key)
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def seconds(stamp: object) -> float:
    """Seconds since 1970 of a timestamp such as ``2025-11-25T03:00:00Z``; 0.0 for none."""
    if not isinstance(stamp, str) or not stamp:
        return 0.0
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def model(document: Manifest) -> ModelView | None:
    """One ShardedModel; None for what has no name or UID."""
    meta = mapping(document, "metadata")
    if not _identified(document):
        return None
    spec, problem = None, ""
    try:
        spec = spec_of(document).spec
    except LamellaError as error:
        problem = str(error)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        log.exception("a manifest could not be read", extra={"model": text(meta, "name")})
        problem = f"the manifest could not be read: {error}"
    return ModelView(
        name=text(meta, "name"),
        namespace=text(meta, "namespace"),
        uid=text(meta, "uid"),
        generation=number(meta, "generation"),
        created_s=seconds(meta.get("creationTimestamp")),
        deleting="deletionTimestamp" in meta,
        spec=spec,
        problem=problem,
        annotations=_strings(meta, "annotations"),
        status=mapping(document, "status"),
    )


def spec_of(document: Manifest) -> ShardedModel:
    """Its manifest without what the server added; raises `InvalidSpec`."""
    meta = mapping(document, "metadata")
    return parse(
        {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": meta.get("name"), "namespace": meta.get("namespace")},
            "spec": document.get("spec"),
        }
    )


def pod(document: Manifest, nodes_ready: Mapping[str, bool] | None = None) -> PodView | None:
    """One pod; ``nodes_ready`` says which nodes there are (None: not known, all are well)."""
    if not _identified(document):
        return None
    meta, status = mapping(document, "metadata"), mapping(document, "status")
    labels, notes = _strings(meta, "labels"), _strings(meta, "annotations")
    conditions = {text(one, "type"): one for one in items(status, "conditions")}
    placed, ready = conditions.get("PodScheduled", {}), conditions.get("Ready", {})
    is_ready = text(ready, "status") == "True"
    node = text(document, "spec", "nodeName")
    waiting, started, restart_count, last_exit = _containers(status)
    deleted_s = seconds(meta.get("deletionTimestamp")) if "deletionTimestamp" in meta else None
    return PodView(
        name=text(meta, "name"),
        uid=text(meta, "uid"),
        role=labels.get(names.LABEL_ROLE, ""),
        revision=labels.get(names.LABEL_REVISION, ""),
        replica=number(labels, names.LABEL_REPLICA),
        stage=number(labels, names.LABEL_STAGE),
        created_s=seconds(meta.get("creationTimestamp")),
        deleted_s=deleted_s,
        phase=text(status, "phase") or "Pending",
        reason=text(status, "reason"),
        message=text(status, "message"),
        node=node,
        node_ready=nodes_ready is None or not node or nodes_ready.get(node, False),
        ip=text(status, "podIP"),
        scheduled=bool(node) or text(placed, "status") == "True",
        unschedulable=text(placed, "message") if text(placed, "status") == "False" else "",
        ready=is_ready,
        ready_since_s=seconds(ready.get("lastTransitionTime")) if is_ready else 0.0,
        waiting_reason=text(waiting, "reason"),
        waiting_message=text(waiting, "message"),
        running=started is not None,
        started_s=seconds(started),
        restart_count=restart_count,
        last_exit=last_exit,
        restarts=number(notes, names.ANNOTATION_RESTARTS),
        predecessor=notes.get(names.ANNOTATION_PREDECESSOR, ""),
        resume=notes.get(names.ANNOTATION_RESUME, ""),
        gang=notes.get(names.ANNOTATION_GANG, ""),
        finalizers=tuple(one for one in meta.get("finalizers") or () if isinstance(one, str)),
    )


def revision(document: Manifest) -> RevisionView | None:
    """One ControllerRevision; its ``data`` is read by whoever needs it."""
    if not _identified(document):
        return None
    meta = mapping(document, "metadata")
    data = mapping(document, "data")
    return RevisionView(
        name=text(meta, "name"),
        uid=text(meta, "uid"),
        number=number(document, "revision"),
        hash=_strings(meta, "labels").get(names.LABEL_REVISION, "") or text(data, "hash"),
        document=data,
    )


def live(kind: str, api_version: str, document: Manifest) -> LiveObject | None:
    """One object that is applied; a LIST leaves out what it is, and who manages it is left out."""
    if not _identified(document):
        return None
    meta = {key: item for key, item in mapping(document, "metadata").items() if key != _MANAGED}
    manifest = {**document, "apiVersion": api_version, "kind": kind, "metadata": meta}
    return LiveObject(kind_name(manifest), text(meta, "name"), text(meta, "uid"), manifest)


def nodes(table: Manifest) -> dict[str, bool]:
    """Each node's name and whether it is ready, from the API server's printed table of nodes."""
    columns = [text(one, "name") for one in items(table, "columnDefinitions")]
    if "Name" not in columns or "Status" not in columns:
        return {}
    name, status = columns.index("Name"), columns.index("Status")
    found: dict[str, bool] = {}
    for row in items(table, "rows"):
        cells = row.get("cells")
        if isinstance(cells, list) and len(cells) > max(name, status):
            found[str(cells[name])] = str(cells[status]).split(",")[0] == "Ready"
    return found


def readable(found: Iterable[T | None]) -> tuple[T, ...]:
    """Those that could be read."""
    return tuple(one for one in found if one is not None)


_MANAGED = "managedFields"


def _identified(document: Manifest) -> bool:
    meta = mapping(document, "metadata")
    if text(meta, "name") and text(meta, "uid"):
        return True
    log.warning("an object without name or UID is left out", extra={"kind": document.get("kind")})
    return False


def _strings(meta: Mapping[str, Any], key: str) -> dict[str, str]:
    return {k: v for k, v in mapping(meta, key).items() if isinstance(v, str)}


def _containers(
    status: Mapping[str, Any],
) -> tuple[Mapping[str, Any], object, int, Exit | None]:
    """Why a container waits, when the main one that runs was started (None: it does not run),

    how often one was restarted, and how the main one ended last.
    """
    waiting: Mapping[str, Any] = {}
    started: object = None
    restarts, last = 0, None
    main = items(status, "containerStatuses")[:1]
    for one in [*items(status, "initContainerStatuses"), *main]:
        waiting = waiting or mapping(one, "state", "waiting")
        restarts = max(restarts, number(one, "restartCount"))
    for one in main:
        running = mapping(one, "state").get("running")
        started = running.get("startedAt", "") if isinstance(running, Mapping) else None
        ended = mapping(one, "state", "terminated") or mapping(one, "lastState", "terminated")
        last = _exit(ended) if ended else None
    return waiting, started, restarts, last


def _exit(ended: Mapping[str, Any]) -> Exit:
    return Exit(
        code=number(ended, "exitCode"),
        reason=text(ended, "reason"),
        message=text(ended, "message"),
        started_s=seconds(ended.get("startedAt")),
        finished_s=seconds(ended.get("finishedAt")),
    )
