"""Carries out what was decided, in order; says what was refused. Decides nothing itself.

Doing an action twice is harmless: names are deterministic and deletes name a UID. One that the
server refuses becomes a `Refusal`; one that it does not answer is raised, and the whole reconcile
comes again. An object that belongs to somebody else is never taken over.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from lamella_contract.names import KIND, LABEL_MODEL_UID
from lamella_operator.actions import Action, Apply, Create, Delete, EnsureKeys, Release, Wait
from lamella_operator.deciding.gang import releases
from lamella_operator.reconciling.client import JSON_PATCH, TO_THE_END, Client, Document, selector
from lamella_operator.reconciling.failures import ApiError, Conflict, NotFound
from lamella_operator.reconciling.keys import Keys
from lamella_operator.reconciling.kinds import APPLIED, BY_NAME, POD, Kind
from lamella_operator.reconciling.observe import owned_by
from lamella_operator.reconciling.parse import items, mapping, pod, text
from lamella_operator.reconciling.refusing import foreign, is_refusal, refusal
from lamella_operator.views import Manifest, Observed, PodView, Refusal, kind_name

log = logging.getLogger(__name__)

NO_VERSION = "1"  # a resourceVersion that no object has: etcd counts from 2 on
COLLECTED_S = 2.0  # until a deleted model's object is expected to be gone


@dataclass(slots=True)
class Acted:
    """What came of it. ``wait_s`` is when to look again (None: when something happens)."""

    refusals: list[Refusal] = field(default_factory=list)
    wait_s: float | None = None
    writes: int = 0

    def wait(self, after_s: float) -> None:
        self.wait_s = after_s if self.wait_s is None else min(self.wait_s, after_s)


@dataclass(slots=True)
class Actor:
    """Acts on one cluster."""

    client: Client
    keys: Keys

    async def act(self, observed: Observed, actions: Sequence[Action]) -> Acted:
        """Raises `ApiError` when the API server is away."""
        deed = _Deed(self.client, self.keys, observed)
        for action in actions:
            if not await deed.do(action):
                break
        return deed.acted

    async def let_go(self, namespace: str, uid: str) -> int:
        """Pods of a model that is gone, which Kueue would hold for ever; how many there were."""
        labels = selector({LABEL_MODEL_UID: uid})
        pods = await self.client.list_objects(POD, namespace, keep=pod, labels=labels, few=True)
        steps = releases(one for one in pods if one is not None)
        return sum([await release(self.client, namespace, step) for step in steps])


@dataclass(slots=True)
class _Deed:
    """One round for one model."""

    client: Client
    keys: Keys
    observed: Observed
    acted: Acted = field(default_factory=Acted)
    _made: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # group: names and UIDs
    _refused: set[str] = field(default_factory=set)  # groups

    async def do(self, action: Action) -> bool:
        """Whether the next action may follow."""
        match action:
            case Wait():
                self.acted.wait(action.after_s)
            case EnsureKeys():
                refused = await self.keys.ensure(
                    self.observed.model,
                    action.roles,
                    action.generation,
                    new=not self.observed.pods and not self.observed.revisions,
                )
                self.acted.refusals += [refused] if refused else []
                return refused is None
            case Create():
                return await self._create(action)
            case Apply():
                return await self._apply(action)
            case Release():
                await self._release(action)
            case Delete():
                return await self._delete(action)
        return True

    async def _create(self, action: Create) -> bool:
        manifest, group = action.manifest, action.group
        kind, name = _kind_and_name(manifest)
        if group in self._refused:
            return True
        try:
            made = await self.client.create(kind, self.observed.model.namespace, manifest)
        except Conflict as error:
            refused = await self._taken(kind, name, manifest, error)
        except ApiError as error:
            if not is_refusal(error):
                raise
            refused = refusal(error, manifest)
        else:
            self.acted.writes += 1
            self._made.setdefault(group, []).append((name, text(made, "metadata", "uid")))
            log.info("made", extra={"kind": kind.kind, "object": name})
            return True
        if refused is None:
            return True
        self._refuse(refused)
        if kind is not POD:
            return False
        if group:
            await self._undo(group)
        return True

    async def _taken(
        self, kind: Kind, name: str, manifest: Manifest, error: Conflict
    ) -> Refusal | None:
        """Whose the name is: ours (made by an earlier try) is fine."""
        if not error.already_exists:
            return refusal(error, manifest)
        live = await self._live(kind, name)
        return None if live is None else self._stranger(live, manifest)

    async def _undo(self, group: str) -> None:
        """All of a group or none: what this round made of it goes again."""
        self._refused.add(group)
        for name, uid in self._made.pop(group, []):
            await self.client.delete(POD, self.observed.model.namespace, name, uid, grace_s=0)
            log.info("taken back", extra={"kind": POD.kind, "object": name, "group": group})

    async def _apply(self, action: Apply) -> bool:
        """Whether the next action may follow: what a group leans on holds up that group alone."""
        refused = await self._applied(action.manifest)
        if refused is None:
            return True
        self._refuse(refused)
        self._refused |= {action.group} - {""}
        return bool(action.group)

    async def _applied(self, manifest: Manifest) -> Refusal | None:
        kind, name = _kind_and_name(manifest)
        namespace = self.observed.model.namespace
        try:
            if not self._is_ours(kind, name):
                stranger = await self._make(kind, name, manifest)
                if stranger is not None:
                    return stranger
            else:
                self._wrote(kind, await self.client.apply(kind, namespace, name, manifest))
        except ApiError as error:
            if not is_refusal(error):
                raise
            return refusal(error, manifest)
        self.acted.writes += 1
        log.info("applied", extra={"kind": kind.kind, "object": name})
        return None

    async def _make(self, kind: Kind, name: str, manifest: Manifest) -> Refusal | None:
        """Apply what was not seen; why not, when the name is a stranger's.

        Only a conflict costs a look at whose it is; an object that is there always conflicts.
        """
        namespace = self.observed.model.namespace
        new = {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": NO_VERSION}}
        try:
            self._wrote(kind, await self.client.apply(kind, namespace, name, new))
        except Conflict:
            live = await self._live(kind, name)
            stranger = None if live is None else self._stranger(live, manifest)
            if stranger is not None:
                return stranger
            self._wrote(kind, await self.client.apply(kind, namespace, name, manifest))
        return None

    async def _release(self, action: Release) -> None:
        try:
            released = await release(self.client, self.observed.model.namespace, action)
        except ApiError as error:
            if not is_refusal(error):
                raise
            self._refuse(refusal(error, {"kind": POD.kind, "metadata": {"name": action.name}}))
            return
        self.acted.writes += released

    def _wrote(self, kind: Kind, document: Document) -> None:
        """What is applied is decided together: that it is there now leads to nothing more."""
        if kind not in APPLIED:
            return  # not watched: it has no echo
        meta = mapping(document, "metadata")
        self.client.wrote(text(meta, "uid"), text(meta, "resourceVersion"))

    async def _delete(self, action: Delete) -> bool:
        kind = BY_NAME[action.kind]
        try:
            await self.client.delete(
                kind, self.observed.model.namespace, action.name, action.uid, action.grace_s
            )
        except ApiError as error:
            if not is_refusal(error):
                raise
            self._refuse(refusal(error, {"kind": action.kind, "metadata": {"name": action.name}}))
            return False
        if action.uid in {one.uid for one in self.observed.inspectors if _is_over(one)}:
            self.client.wrote(action.uid, TO_THE_END)  # read and removed: nothing waits for it
        self.acted.writes += 1
        facts = {"kind": action.kind, "object": action.name, "why": action.why}
        log.info("deleted", extra={**facts, "grace_s": action.grace_s})
        return True

    def _is_ours(self, kind: Kind, name: str) -> bool:
        seen = self.observed.objects
        return any(one.kind == kind.name and one.name == name for one in seen)

    async def _live(self, kind: Kind, name: str) -> Document | None:
        try:
            return await self.client.get(kind, self.observed.model.namespace, name)
        except NotFound:
            return None

    def _stranger(self, live: Document, manifest: Manifest) -> Refusal | None:
        """Why a name that is taken cannot be ours; None when the object is."""
        model = self.observed.model
        if owned_by(live, model.uid):
            return None
        owners = items(mapping(live, "metadata"), "ownerReferences")
        if any((text(one, "kind"), text(one, "name")) == (KIND, model.name) for one in owners):
            self.acted.wait(COLLECTED_S)
            return foreign(manifest, "a ShardedModel of this name that was deleted just now")
        named = [f"{text(owner, 'kind')} {text(owner, 'name')}" for owner in owners]
        return foreign(manifest, " and ".join(named) or "nobody that Lamella knows")

    def _refuse(self, refused: Refusal) -> None:
        self.acted.refusals.append(refused)
        log.warning("refused", extra={"reason": refused.reason, "said": refused.message})


async def release(client: Client, namespace: str, action: Release) -> bool:
    """Whether the pod has lost the finalizer by this; one that has changed meanwhile keeps it
    until it is looked at again. Raises `ApiError`."""
    kept = [one for one in action.finalizers if one != action.finalizer]
    changes = [
        {"op": "test", "path": "/metadata/uid", "value": action.uid},
        {"op": "test", "path": "/metadata/finalizers", "value": list(action.finalizers)},
        {"op": "replace", "path": "/metadata/finalizers", "value": kept},
    ]
    try:
        await client.call(
            "PATCH", POD.path(namespace, action.name), POD, body=changes, content_type=JSON_PATCH
        )
    except ApiError as error:
        if error.status in (404, 409, 422):
            return False
        raise
    log.info("released", extra={"kind": POD.kind, "object": action.name})
    return True


def _is_over(pod: PodView) -> bool:
    """Whether a pod's object is all that is left of it, and goes as soon as it is deleted."""
    return pod.phase in ("Succeeded", "Failed") and not pod.finalizers


def _kind_and_name(manifest: Manifest) -> tuple[Kind, str]:
    return BY_NAME[kind_name(manifest)], manifest["metadata"]["name"]
