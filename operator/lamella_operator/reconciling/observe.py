"""What the cluster looks like now for one model: LISTs by the label with the model's UID.

Reads and never writes; remembers nothing but which nodes are ready, for ten seconds. Secrets are
not read. Nodes are asked for only when the operator looks after the whole cluster, and done
without when that is refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lamella_contract import names
from lamella_operator.desired.gangs import gang_of
from lamella_operator.reconciling import missing, parse, stage0
from lamella_operator.reconciling.claims import claims_of
from lamella_operator.reconciling.client import METADATA_ONLY, TABLE, Client, Document, selector
from lamella_operator.reconciling.failures import Forbidden, NotFound
from lamella_operator.reconciling.kinds import (
    APPLIED,
    GANGS,
    MODEL,
    NODE,
    OWNED,
    POD,
    REVISION,
    Kind,
)
from lamella_operator.reconciling.parse import items, mapping
from lamella_operator.views import (
    LiveObject,
    Manifest,
    ModelView,
    Observed,
    PodView,
    Rival,
)

log = logging.getLogger(__name__)

NODES_S = 10.0  # for which a LIST of nodes is good
REFUSED_S = 600.0  # after which nodes are asked for again when that was refused
ROLES_OWNED = (names.ROLE_STAGE, names.ROLE_INSPECTOR)


@dataclass(frozen=True, slots=True, order=True, weakref_slot=True)
class ModelKey:
    """One ShardedModel; a later one of the same name has another UID and is another key."""

    namespace: str
    name: str
    uid: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen; ``version`` is the model's resourceVersion. ``look_again``: something is
    under way of which no event tells."""

    observed: Observed
    version: str
    look_again: bool = False


@dataclass(slots=True)
class Nodes:
    """Which nodes are ready, or None where that may not be known."""

    client: Client
    enabled: bool
    now_s: Callable[[], float]
    _ready: Mapping[str, bool] | None = None
    _good_until_s: float = 0.0
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def ready(self) -> Mapping[str, bool] | None:
        if not self.enabled:
            return None
        async with self._lock:  # one LIST for all who wait
            if self.now_s() >= self._good_until_s:
                await self._read()
            return self._ready

    async def _read(self) -> None:
        try:
            table = await self.client.call(
                "GET", NODE.path(), NODE, query={"includeObject": "None"}, accept=TABLE, verb="list"
            )
        except Forbidden:
            log.info("nodes may not be listed: a lost node is noticed by its pods only")
            self._ready, self._good_until_s = None, self.now_s() + REFUSED_S
            return
        self._ready = parse.nodes(table) or None
        self._good_until_s = self.now_s() + NODES_S


@dataclass(frozen=True, slots=True)
class Observer:
    """``now_s`` is the time of day (seconds since 1970): the API server's stamps are."""

    client: Client
    nodes: Nodes
    ask: stage0.Ask
    public_key: Callable[[str, str, int], str]
    namespaces: tuple[str, ...]
    now_s: Callable[[], float]

    async def observe(self, key: ModelKey) -> Sight | None:
        """All that is of one model; None when that very model is gone. Raises `ApiError`."""
        document = await self._model(key)
        if document is None:
            return None
        model = parse.model(document)
        if model is None or model.uid != key.uid:
            return None
        labels = selector({names.LABEL_MODEL_UID: key.uid})
        begun = bool(model.status.get("updateRevision"))
        found = await self._listed(key, labels, OWNED if begun else (POD, REVISION))
        if not begun:
            # A revision is made before everything but inspectors: without it there is no more.
            more = APPLIED if found[REVISION.kind] or any(map(_serves, found[POD.kind])) else ()
            found |= await self._listed(key, labels, more)
        nodes = await self.nodes.ready()
        found |= await self._groups(model, found, labels)
        pods = await missing.told(
            self.client,
            key.namespace,
            _pods(found[POD.kind], key.uid, nodes),
            found[POD.kind],
            self.now_s(),
        )
        stages = [pod for pod in pods if pod.role == names.ROLE_STAGE]
        observed = Observed(
            now_s=self.now_s(),
            model=model,
            pods=tuple(stages),
            gateway_pods=tuple(pod for pod in pods if pod.role == names.ROLE_GATEWAY),
            inspectors=tuple(pod for pod in pods if pod.role == names.ROLE_INSPECTOR),
            revisions=parse.readable(
                parse.revision(one) for one in found[REVISION.kind] if owned_by(one, key.uid)
            ),
            objects=tuple(_live(found, key.uid)),
            rings=await stage0.rings(self.ask, stages),
            claims=await claims_of(self.client, model),
            one_node=nodes is not None and len(nodes) == 1,
            public_key=partial(self.public_key, key.uid),
        )
        version = parse.text(document, "metadata", "resourceVersion")
        soon = bool(stage0.to_ask(stages)) or any(missing.creating(pod) for pod in pods)
        return Sight(observed, version, soon)

    async def _listed(
        self, key: ModelKey, labels: str, kinds: Sequence[Kind]
    ) -> dict[str, list[Document]]:
        """One LIST for each of ``kinds``, all at once, by kind."""
        listed = await asyncio.gather(
            *(
                self.client.list_objects(kind, key.namespace, keep=_whole, labels=labels, few=True)
                for kind in kinds
            )
        )
        return {kind.kind: documents for kind, documents in zip(kinds, listed, strict=True)}

    async def _groups(
        self, model: ModelView, found: Mapping[str, Sequence[Document]], labels: str
    ) -> dict[str, list[Document]]:
        """PodGroups, where the manifest or a revision that is kept names a system that has them;
        none where that system is not installed, or may not be asked."""
        named = {gang_of(pod) for one in found[REVISION.kind] for pod in _first_pod(one)}
        if model.spec is not None:
            named.add(model.spec.cluster.scheduling.gang)
        groups: dict[str, list[Document]] = {}
        for kind in (GANGS[name] for name in sorted(named & GANGS.keys())):
            try:
                groups[kind.name] = await self.client.list_objects(
                    kind, model.namespace, keep=_whole, labels=labels, few=True
                )
            except (NotFound, Forbidden) as error:
                log.info("no groups of pods are seen", extra={"said": str(error)})
        return groups

    async def rivals(self) -> tuple[Rival, ...]:
        """Every half-placed pipeline of every model: some pods have a node, some wait for one."""
        waiting = await self._pipelines("spec.nodeName=")
        placed = await self._pipelines("spec.nodeName!=") if waiting else {}
        return tuple(
            Rival(uid, replica, min(waiting[uid, replica], placed[uid, replica]))
            for uid, replica in sorted(waiting.keys() & placed.keys())
        )

    async def _pipelines(self, fields: str) -> dict[tuple[str, int], float]:
        """Each pipeline with a stage's pod that ``fields`` selects: when its oldest was made."""
        labels = selector({names.LABEL_ROLE: names.ROLE_STAGE})
        oldest: dict[tuple[str, int], float] = {}
        for place in self.namespaces or ("",):
            pods = await self.client.list_objects(
                POD, place, keep=_pipeline_of, labels=labels, fields=fields, accept=METADATA_ONLY
            )
            for pipeline, created_s in pods:
                oldest[pipeline] = min(created_s, oldest.get(pipeline, created_s))
        return oldest

    async def _model(self, key: ModelKey) -> Document | None:
        try:
            return await self.client.get(MODEL, key.namespace, key.name)
        except NotFound:
            return None


def _whole(document: Document) -> Document:
    return document


def _serves(pod: Document) -> bool:
    """Whether it is a stage's or a gateway's."""
    labels = parse.mapping(pod, "metadata", "labels")
    return parse.text(labels, names.LABEL_ROLE) != names.ROLE_INSPECTOR


def _first_pod(revision: Document) -> list[Mapping[str, Any]]:
    """The manifest of a stored revision's stage 0, in a list; empty where it has none."""
    return [pod for pod in items(mapping(revision, "data"), "pods")[:1] if "metadata" in pod]


def _pipeline_of(document: Document) -> tuple[tuple[str, int], float]:
    meta = parse.mapping(document, "metadata")
    labels = parse.mapping(meta, "labels")
    pipeline = parse.text(labels, names.LABEL_MODEL_UID), parse.number(labels, names.LABEL_REPLICA)
    return pipeline, parse.seconds(meta.get("creationTimestamp"))


def _pods(
    documents: Sequence[Document], uid: str, nodes: Mapping[str, bool] | None
) -> tuple[PodView, ...]:
    """Those of the model: a copy that somebody made with all its labels is not."""
    views = parse.readable(parse.pod(one, nodes) for one in documents if _is_ours(one, uid))
    return tuple(sorted(views, key=lambda pod: (pod.replica, pod.stage, pod.created_s, pod.name)))


def _is_ours(document: Manifest, uid: str) -> bool:
    role = parse.text(parse.mapping(document, "metadata", "labels"), names.LABEL_ROLE)
    # a gateway's pod belongs to its ReplicaSet
    return role not in ROLES_OWNED or owned_by(document, uid)


def _live(found: Mapping[str, Sequence[Document]], uid: str) -> list[LiveObject]:
    return [
        view
        for kind in (*APPLIED, *GANGS.values())
        for one in found.get(kind.name, ())
        if owned_by(one, uid)
        for view in (parse.live(kind.kind, kind.api_version, one),)
        if view is not None
    ]


def owned_by(document: Manifest, uid: str) -> bool:
    """Whether the model with that UID is an owner of the object."""
    owners = parse.items(parse.mapping(document, "metadata"), "ownerReferences")
    return any(parse.text(owner, "uid") == uid for owner in owners)
