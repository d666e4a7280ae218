"""The operator in the simulated cluster: it observes, decides, acts, dies, and is held to rules.

Knows the operator only through `decide`: `reconcile` does one pass (up to a crash after any action)
and writes what it remembers into the status. What the operator may never do raises `Forbidden`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from operator_cluster import Cluster
from operator_things import SETTINGS, Forbidden, Model, Node, Pod, make_body, make_profile

from lamella_contract import names
from lamella_operator.actions import (
    Apply,
    Create,
    Decision,
    Delete,
    EnsureKeys,
    Release,
    Situation,
    Wait,
)
from lamella_operator.deciding import slots
from lamella_operator.deciding.decide import decide, wants_rivals
from lamella_operator.deciding.revisions import stored
from lamella_operator.views import (
    LiveObject,
    MemberView,
    Observed,
    PodView,
    Refusal,
    RevisionView,
    RingView,
    Rival,
    kind_name,
)

__all__ = ["SETTINGS", "Forbidden", "Model", "Node", "Pod", "World", "make_body", "make_profile"]


class World(Cluster):
    """The cluster with an operator in it."""

    # -- what the operator sees and does -------------------------------------------------------

    def observe(self, model: Model) -> Observed:
        observed = Observed(
            now_s=self.now_s,
            model=model.view(),
            pods=self._views(model, names.ROLE_STAGE),
            gateway_pods=self._views(model, names.ROLE_GATEWAY),
            inspectors=self._views(model, names.ROLE_INSPECTOR),
            revisions=tuple(self._revisions(model)),
            objects=tuple(
                LiveObject(kind, name, item["metadata"]["uid"], copy.deepcopy(item))
                for (kind, name), item in self.objects.items()
                if item["metadata"]["labels"].get(names.LABEL_MODEL_UID) == model.uid
            ),
            rings=self._rings(model),
            public_key=lambda role, generation: f"{role}-{generation}".ljust(40, "."),
        )
        if wants_rivals(observed):
            observed = replace(observed, rivals=tuple(self._rivals()))
        return observed

    def reconcile(self, model: Model, crash_after: int | None = None) -> Decision:
        """One pass; ``crash_after`` actions the operator is gone, before the status is written."""
        observed = self.observe(model)
        decision = decide(observed, SETTINGS)
        if decide(observed, SETTINGS) != decision:
            raise Forbidden("two decisions on one observation differ")
        self._check(observed, decision)
        refusals: list[Refusal] = []
        made: dict[str, list[Pod]] = {}
        real = [action for action in decision.actions if not isinstance(action, Wait)]
        for done, action in enumerate(real):
            if done == crash_after:
                return decision
            self._do(model, action, refusals, made)
        if crash_after is not None and crash_after >= len(real) and self.random.random() < 0.5:
            return decision
        situation = decision.situation
        if refusals:
            situation = decide(replace(observed, refusals=tuple(refusals)), SETTINGS).situation
        model.status = remembered(situation)
        return decision

    def _do(
        self, model: Model, action: Any, refusals: list[Refusal], made: dict[str, list[Pod]]
    ) -> None:
        if isinstance(action, Create) and action.manifest["kind"] == "Pod":
            self._create_pod(model, action, refusals, made)
        elif isinstance(action, Create):
            name = action.manifest["metadata"]["name"]
            if name not in self.revisions:
                item = self._stored(action.manifest)
                self.revisions[name] = item
        elif isinstance(action, Apply):
            key = (kind_name(action.manifest), action.manifest["metadata"]["name"])
            old = self.objects.get(key)
            item = self._stored(action.manifest)
            if old is not None:
                item["metadata"]["uid"] = old["metadata"]["uid"]
                item["status"] = old.get("status", {})
                item["metadata"]["generation"] = old["metadata"]["generation"] + 1
            self.objects[key] = item
        elif isinstance(action, Delete):
            self._delete(action)
        elif isinstance(action, Release):
            self._release(action)
        elif isinstance(action, EnsureKeys):
            self.keys |= {(model.uid, role, action.generation) for role in action.roles}

    def _create_pod(
        self, model: Model, action: Create, refusals: list[Refusal], made: dict[str, list[Pod]]
    ) -> None:
        manifest = action.manifest
        if any(pod.name == manifest["metadata"]["name"] for pod in self.pods.values()):
            return
        labels = manifest["metadata"]["labels"]
        counted = [pod for pod in self.pods.values() if not pod.over]
        replica = int(labels.get(names.LABEL_REPLICA, "0"))
        group_refused = any(one.replica == replica for one in refusals) and bool(action.group)
        if group_refused or (self.quota is not None and len(counted) >= self.quota):
            stage = int(labels.get(names.LABEL_STAGE, "0"))
            refusals.append(Refusal("QuotaExceeded", "exceeded quota: pods", replica, stage))
            for pod in made.get(action.group, ()) if action.group else ():
                self.pods.pop(pod.uid, None)
            return
        if labels[names.LABEL_ROLE] == names.ROLE_STAGE:
            role = names.stage_role(int(labels[names.LABEL_STAGE]))
            if (model.uid, role, 1) not in self.keys:
                raise Forbidden(f"a pod was made before the keys of {role}")
            revision = labels[names.LABEL_REVISION]
            if revision not in {one.hash for one in self._revisions(model)}:
                raise Forbidden("a pod was made before its revision was stored")
        pod = Pod(copy.deepcopy(dict(manifest)), self.uid(), self.now_s)
        pod.held = pod.by_kueue
        self.pods[pod.uid] = pod
        self.created += 1
        made.setdefault(action.group, []).append(pod)

    def _delete(self, action: Delete) -> None:
        if action.kind == "Pod":
            pod = self.pods.get(action.uid)
            if pod is not None and pod.name == action.name:
                self.deletes.append(pod.uid)
                self.delete(pod, action.grace_s)
        elif action.kind == "ControllerRevision":
            if self.revisions.get(action.name, {}).get("metadata", {}).get("uid") == action.uid:
                del self.revisions[action.name]
        else:
            self.objects.pop((action.kind, action.name), None)

    def _release(self, action: Release) -> None:
        pod = self.pods.get(action.uid)
        if pod is None or pod.name != action.name:
            return
        pod.held = False
        if pod.deleted_s is not None and (not pod.node or pod.over or pod.deleted_s <= self.now_s):
            del self.pods[pod.uid]

    def _stored(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        item = copy.deepcopy(dict(manifest))
        item["metadata"] = {**item["metadata"], "uid": self.uid(), "generation": 1}
        return item

    def _views(self, model: Model, role: str) -> tuple[PodView, ...]:
        found = [pod.view(self.nodes) for pod in self.of(model, role)]
        self.random.shuffle(found)
        return tuple(found)

    def _revisions(self, model: Model) -> Iterator[RevisionView]:
        for name, item in self.revisions.items():
            labels = item["metadata"]["labels"]
            if labels[names.LABEL_MODEL_UID] == model.uid:
                yield RevisionView(
                    name,
                    item["metadata"]["uid"],
                    item["revision"],
                    labels[names.LABEL_REVISION],
                    item["data"],
                )

    def _rings(self, model: Model) -> dict[int, RingView]:
        """What each stage 0 that can be reached says."""
        found = {}
        for head in self.of(model, names.ROLE_STAGE):
            if head.stage or not self.talks(head):
                continue
            others = [p for p in self.of(model, names.ROLE_STAGE) if p.replica == head.replica]
            members, lost, meant = [], None, ""
            count = max(p.stage for p in others) + 1
            for stage in range(count):
                heard = [p for p in others if p.stage == stage and self.talks(p)]
                loaded = any(p.loaded for p in heard)
                state = "ready" if loaded else "loading" if heard else "silent"
                members.append(MemberView(stage, state))
                if state == "silent" and lost is None:
                    lost = stage
                    meant = max((p.uid for p in others if p.stage == stage), default="")
            heard_of = any(p.uid == meant and p.running for p in others)
            uid = meant if heard_of and self.names_pods else ""
            if self.names_pods and not heard_of:
                lost = None  # a stage that never joined is not lost
            found[head.replica] = RingView(head.ready, "", lost, tuple(members), lost_uid=uid)
        return found

    def _rivals(self) -> Iterator[Rival]:
        for model in self.models.values():
            observed = Observed(
                self.now_s,
                model.view(),
                self._views(model, names.ROLE_STAGE),
                revisions=tuple(self._revisions(model)),
            )
            for one in slots.pipelines(observed, stored(observed), ""):
                placed = [pod.scheduled for pod in one.holders]
                if any(placed) and not all(placed):
                    yield Rival(model.uid, one.replica, one.created_s)

    # -- what may never happen -----------------------------------------------------------------

    def _check(self, observed: Observed, decision: Decision) -> None:
        """No serving pipeline is taken down beyond the bounds, no pipeline too many is made."""
        parsed = observed.model.spec
        if parsed is None:
            return
        wanted, rollout = parsed.replicas, parsed.cluster.rollout
        before = slots.pipelines(observed, stored(observed), decision.situation.revision)
        serving = {one.replica: one for one in before if one.ready}
        touched = {action.uid for action in decision.actions if isinstance(action, Delete)}
        down = [one for one in serving.values() if touched & {pod.uid for pod in one.holders}]
        least = min(max(wanted - rollout.max_unavailable, 0), len(serving))
        if len(serving) - len(down) < least:
            raise Forbidden(f"{len(down)} of {len(serving)} serving pipelines are taken down")
        replicas = {one.replica for one in before}
        new = {
            int(action.manifest["metadata"]["labels"][names.LABEL_REPLICA])
            for action in decision.actions
            if isinstance(action, Create) and names.LABEL_REPLICA in _labels(action)
        } - replicas
        if new and len(replicas | new) > wanted + rollout.max_surge:
            raise Forbidden(f"{len(replicas | new)} pipelines, {wanted} wanted")

    # -- until nothing moves -------------------------------------------------------------------

    def settle(self, steps: int = 400) -> None:
        """Reconcile and tick until neither the operator nor the cluster changes anything."""
        quiet = 0
        for _ in range(steps):
            moved, waits = False, []
            for model in self.random.sample(
                sorted(self.models.values(), key=lambda m: m.name), len(self.models)
            ):
                decision = self.reconcile(model)
                waits += [a.after_s for a in decision.actions if isinstance(a, Wait)]
                moved |= any(not isinstance(a, Wait | EnsureKeys) for a in decision.actions)
            moved |= self.tick()
            quiet = 0 if moved else quiet + 1
            if quiet and waits:
                self.now_s += min(waits)
            if quiet > 12:
                return
        raise AssertionError(f"nothing settled in {steps} steps: {decision.actions}")


def remembered(situation: Situation) -> dict[str, Any]:
    """What of a situation the operator reads again, as the status has it."""
    return {
        "profile": {
            "key": situation.profile_key,
            "attempts": situation.inspect_attempts,
            "data": situation.profile_message,
        },
        "resumed": situation.resumed,
        "yields": [{"replica": replica, "at": at} for replica, at in situation.yielded_s],
        "pipelines": [
            {
                "replica": one.replica,
                "revision": one.revision,
                "state": one.state,
                "reason": one.note.reason if one.note else "",
                "message": one.note.message if one.note else "",
                "stages": [
                    {"stage": s.stage, "podUID": s.pod_uid, "restarts": s.restarts}
                    for s in one.stages
                ],
            }
            for one in situation.replicas
        ],
    }


def _labels(action: Create) -> Mapping[str, str]:
    return action.manifest["metadata"]["labels"]  # type: ignore[no-any-return]
