"""Twins of the API server for the operator's tests: one that plays a script, one that stores.

Both are `Transport`s of `lamella_operator.reconciling.client`.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from lamella_operator.reconciling.client import Answer
from lamella_operator.reconciling.kinds import BY_NAME, NODE
from lamella_operator.views import kind_name

Object = dict[str, Any]


def status(code: int, reason: str, message: str = "no", **details: Any) -> Answer:
    """A refusal as the API server words it."""
    body = {"kind": "Status", "reason": reason, "message": message, "details": details}
    return Answer(code, json.dumps(body).encode())


def ok(document: Object, code: int = 200) -> Answer:
    return Answer(code, json.dumps(document).encode())


@dataclass
class Script:
    """Answers in order; an exception is raised. Says what it was asked."""

    answers: list[Answer | Exception]
    asked: list[tuple[str, str]] = field(default_factory=list)
    renewed: int = 0

    async def send(
        self, method: str, path: str, headers: dict[str, str], body: object, timeout_s: float
    ) -> Answer:
        self.asked.append((method, path))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def renew_credentials(self) -> None:
        self.renewed += 1


class Store:
    """Objects by path. ``before`` may answer instead (return an `Answer`) or raise."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.writes: list[tuple[str, str]] = []
        self.asked: list[tuple[str, str]] = []
        self.before: Callable[[str, str, Any], Answer | None] = lambda method, path, body: None
        self._versions = itertools.count(2)
        self._uids = itertools.count(1)

    async def renew_credentials(self) -> None: ...

    async def send(
        self, method: str, path: str, headers: dict[str, str], body: Any, timeout_s: float
    ) -> Answer:
        parts = urlsplit(path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.asked.append((method, path))
        instead = self.before(method, parts.path, body)
        if instead is not None:
            return instead
        if method != "GET":
            self.writes.append((method, parts.path))
        body = copy.deepcopy(body)
        handler = getattr(self, f"_{method.lower()}")
        answer: Answer = handler(parts.path, query, body)
        return answer

    def put_in(self, document: Object, **metadata: Any) -> Object:
        """Store an object as if somebody had made it."""
        kind = BY_NAME[kind_name({"apiVersion": "v1", **document})]
        meta = document.setdefault("metadata", {})
        meta |= {"uid": f"uid-{next(self._uids)}", "creationTimestamp": "2025-11-25T03:00:00Z"}
        meta |= metadata
        meta["resourceVersion"] = str(next(self._versions))
        self.objects[kind.path(meta["namespace"], meta["name"])] = document
        return document

    def named(self, kind: str) -> list[str]:
        plural = BY_NAME[kind].plural
        return sorted(p.rsplit("/", 1)[1] for p in self.objects if f"/{plural}/" in p)

    def _get(self, path: str, query: Object, body: Any) -> Answer:
        if path in self.objects:
            return ok(self.objects[path])
        if path.rsplit("/", 1)[1] in {kind.plural for kind in (*BY_NAME.values(), NODE)}:
            return ok({"metadata": {}, "items": list(self._list(path, query))})
        return status(404, "NotFound")

    def _list(self, path: str, query: Object) -> Iterable[Object]:
        wanted = [pair.split("=") for pair in query.get("labelSelector", "").split(",") if pair]
        prefix, _, plural = path.rpartition("/")
        for at, document in self.objects.items():
            if at.startswith(prefix) and f"/{plural}/" in at:
                labels = document["metadata"].get("labels", {})
                if all(
                    pair[0] in labels and pair[1:] in ([], [labels[pair[0]]]) for pair in wanted
                ):
                    yield {k: v for k, v in document.items() if k not in ("kind", "apiVersion")}

    def _post(self, path: str, query: Object, body: Object) -> Answer:
        at = f"{path}/{body['metadata']['name']}"
        if at in self.objects:
            return status(409, "AlreadyExists", f"{at} already exists")
        return ok(self.put_in(body, namespace=path.split("/")[-2]), 201)

    def _put(self, path: str, query: Object, body: Object) -> Answer:
        if path not in self.objects:
            return status(404, "NotFound")
        old = self.objects[path]["metadata"]
        if body["metadata"].get("resourceVersion") not in (None, old["resourceVersion"]):
            return status(409, "Conflict", "the object has been modified")
        return ok(self.put_in(body, uid=old["uid"]))

    def _patch(self, path: str, query: Object, body: Object) -> Answer:
        if path.endswith("/status"):
            stored = self.objects.get(path.removesuffix("/status"))
            if stored is None:
                return status(404, "NotFound")
            if body["metadata"].get("uid") not in (None, stored["metadata"]["uid"]):
                return status(409, "Conflict", "another UID")
            stored["status"] = body["status"]
            stored["metadata"]["resourceVersion"] = str(next(self._versions))
            return ok(stored)
        if isinstance(body, list):
            return self._json_patch(path, body)
        old = self.objects.get(path, {}).get("metadata", {})
        wanted = body["metadata"].get("resourceVersion")
        if old and wanted not in (None, old["resourceVersion"]):
            return status(409, "Conflict", "the object has been modified")
        return ok(self.put_in(body, **({"uid": old["uid"]} if old else {})))

    def _json_patch(self, path: str, changes: list[Object]) -> Answer:
        """Of metadata alone: tests and replacements."""
        if path not in self.objects:
            return status(404, "NotFound")
        meta = self.objects[path]["metadata"]
        for change in changes:
            key = change["path"].removeprefix("/metadata/")
            if change["op"] == "test" and meta.get(key) != change["value"]:
                return status(422, "Invalid", "the test of a patch failed")
            if change["op"] == "replace":
                meta[key] = change["value"]
        return ok(self.objects[path])

    def _delete(self, path: str, query: Object, body: Object) -> Answer:
        stored = self.objects.get(path)
        if stored is None:
            return status(404, "NotFound")
        if body["preconditions"]["uid"] != stored["metadata"]["uid"]:
            return status(409, "Conflict", "the UID in the precondition does not match")
        return ok(self.objects.pop(path))
