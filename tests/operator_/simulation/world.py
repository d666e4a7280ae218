"""A small cluster in a dict: API server, scheduler, kubelets, garbage collector, Deployments.

Time is a number that `tick` moves on; order is drawn from one seeded random generator. Knows the
operator only through `decide`: `reconcile` observes, decides, acts (up to a crash after any action)
and writes what it remembers into the status. It keeps score of what the operator may never do
(`check_*`), at each action.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lamella_contract import names, profile_message, spec
from lamella_contract.errors import LamellaError
from lamella_contract.profile import LayerProfile, ModelProfile
from lamella_operator.actions import (
    Apply,
    Create,
    Decision,
    Delete,
    EnsureKeys,
    Situation,
    Wait,
)
from lamella_operator.deciding import slots
from lamella_operator.deciding.decide import decide, wants_rivals
from lamella_operator.deciding.revisions import stored
from lamella_operator.settings import Settings
from lamella_operator.views import (
    Exit,
    LiveObject,
    MemberView,
    ModelView,
    Observed,
    PodView,
    Refusal,
    RevisionView,
    RingView,
    Rival,
)

MIB = 1 << 20
GPU = "nvidia.com/gpu"
SETTINGS = Settings(worker_image="registry.test/worker:1", operator_image="registry.test/op:1")


def make_body(**changes: Any) -> dict[str, Any]:
    """A manifest's spec: two stages with a GPU each, no gateways but one."""
    body: dict[str, Any] = {
        "model": {"uri": "hf://Qwen/Qwen3"},
        "pipeline": {"stages": 2, "stageMemory": "24Gi"},
        "resources": {"limits": {GPU: 1}},
        "gateway": {"replicas": 1},
        "replicas": 1,
    }
    return body | changes


def make_profile(layers: int = 8) -> ModelProfile:
    """A model of equal layers."""
    return ModelProfile(
        uri="hf://Qwen/Qwen3",
        commit="0123456789abcdef0123456789abcdef01234567",
        family="qwen3",
        dtype="bfloat16",
        hidden_size=1024,
        vocab_size=151936,
        max_model_len=4096,
        layers=(LayerProfile(256 * MIB, 4096, 0, "full_attention"),) * layers,
        embedding_bytes=MIB,
        head_bytes=MIB,
        final_bytes=2048,
        tied=False,
        boundary_bytes_per_token=2048,
        allowed_cuts=tuple(range(1, layers)),
        eos_token_ids=(1,),
    )


@dataclass
class Node:
    gpus: int = 8
    ready: bool = True


@dataclass
class Pod:
    """A pod and what its kubelet knows; `view` is what the operator sees."""

    manifest: Mapping[str, Any]
    uid: str
    created_s: float
    deleted_s: float | None = None
    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    node: str = ""
    unschedulable: str = ""
    running: bool = False
    started_s: float = 0.0
    ready: bool = False
    ready_since_s: float = 0.0
    waiting_reason: str = ""
    waiting_message: str = ""
    restart_count: int = 0
    last_exit: Exit | None = None
    loaded: bool = False
    wedged: bool = False
    immortal: bool = False  # its kubelet never ends it
    held: bool = False  # a finalizer keeps it, even from force

    @property
    def labels(self) -> Mapping[str, str]:
        return self.manifest["metadata"]["labels"]  # type: ignore[no-any-return]

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])

    @property
    def role(self) -> str:
        return self.labels[names.LABEL_ROLE]

    @property
    def owner(self) -> str:
        return self.labels[names.LABEL_MODEL_UID]

    @property
    def replica(self) -> int:
        return int(self.labels.get(names.LABEL_REPLICA, "0"))

    @property
    def stage(self) -> int:
        return int(self.labels.get(names.LABEL_STAGE, "0"))

    @property
    def over(self) -> bool:
        return self.phase in ("Failed", "Succeeded")

    @property
    def gpus(self) -> int:
        containers = self.manifest["spec"]["containers"]
        limits = (containers[0].get("resources") or {}).get("limits") or {}
        return int(limits.get(GPU, 0))

    @property
    def grace_s(self) -> float:
        return float(self.manifest["spec"].get("terminationGracePeriodSeconds", 30))

    def end(
        self, code: int = 1, reason: str = "Error", message: str = "", at_s: float = 0.0
    ) -> None:
        """Its container ends."""
        self.last_exit = Exit(code, reason, message, self.started_s, at_s)
        self.running = self.ready = self.loaded = False
        self.ready_since_s, self.started_s = 0.0, 0.0

    def fail(self, reason: str, message: str = "") -> None:
        """The whole pod fails."""
        self.phase, self.reason, self.message = "Failed", reason, message
        self.running = self.ready = self.loaded = False
        self.ready_since_s = self.started_s = 0.0

    def view(self, nodes: Mapping[str, Node]) -> PodView:
        notes = self.manifest["metadata"].get("annotations", {})
        return PodView(
            name=self.name,
            uid=self.uid,
            role=self.role,
            revision=self.labels.get(names.LABEL_REVISION, ""),
            replica=self.replica,
            stage=self.stage,
            created_s=self.created_s,
            deleted_s=self.deleted_s,
            phase=self.phase,
            reason=self.reason,
            message=self.message,
            node=self.node,
            node_ready=not self.node or nodes[self.node].ready,
            scheduled=bool(self.node),
            unschedulable=self.unschedulable,
            ready=self.ready,
            ready_since_s=self.ready_since_s,
            waiting_reason=self.waiting_reason,
            waiting_message=self.waiting_message,
            running=self.running,
            started_s=self.started_s,
            restart_count=self.restart_count,
            last_exit=self.last_exit,
            restarts=int(notes.get(names.ANNOTATION_RESTARTS) or 0),
            predecessor=notes.get(names.ANNOTATION_PREDECESSOR, ""),
            resume=notes.get(names.ANNOTATION_RESUME, ""),
        )


@dataclass
class Model:
    """A ShardedModel as it is stored."""

    name: str
    uid: str
    created_s: float
    body: Any
    generation: int = 1
    annotations: dict[str, str] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    deleting: bool = False

    def view(self) -> ModelView:
        manifest = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": self.name, "namespace": "ai"},
            "spec": self.body,
        }
        parsed, problem = None, ""
        try:
            parsed = spec.parse(manifest).spec
        except LamellaError as error:
            problem = str(error)
        return ModelView(
            self.name,
            "ai",
            self.uid,
            self.generation,
            self.created_s,
            self.deleting,
            parsed,
            problem,
            dict(self.annotations),
            copy.deepcopy(self.status),
        )


class Forbidden(AssertionError):
    """The operator did what it may never do."""


class World:
    """The cluster. ``random`` decides in which order things happen."""

    def __init__(self, seed: int = 0, nodes: int = 2, gpus: int = 8) -> None:
        self.random = random.Random(seed)
        self.now_s = 1000.0
        self.nodes = {f"node-{i}": Node(gpus) for i in range(nodes)}
        self.models: dict[str, Model] = {}
        self.pods: dict[str, Pod] = {}
        self.revisions: dict[str, dict[str, Any]] = {}  # by name
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.keys: set[tuple[str, str, int]] = set()
        self.quota: int | None = None
        self.profile: ModelProfile | LamellaError = make_profile()
        self.broken_images: set[str] = set()
        self.crashing: dict[tuple[int, int], str] = {}  # (replica, stage): termination message
        self.names_pods = self.random.random() < 0.5  # stage 0 says which pod is lost
        self.failing: set[tuple[int, int]] = set()
        self.counter = itertools.count(1)
        self.deletes: list[str] = []  # UIDs of pods that the operator deleted
        self.created = 0

    # -- what a test does ----------------------------------------------------------------------

    def apply(self, name: str, body: Any) -> Model:
        """``kubectl apply``."""
        old = self.models.get(name)
        if old is None:
            old = self.models[name] = Model(name, self.uid(), self.now_s, body)
        elif old.body != body:
            old.body, old.generation = body, old.generation + 1
        return old

    def scale(self, name: str, replicas: int) -> None:
        self.apply(name, {**self.models[name].body, "replicas": replicas})

    def uid(self) -> str:
        return f"uid-{next(self.counter):05d}"

    def stages(self, name: str) -> list[Pod]:
        """The stages' pods of a model, in order."""
        return sorted(
            self.of(self.models[name], names.ROLE_STAGE), key=lambda p: (p.replica, p.stage, p.uid)
        )

    def of(self, model: Model, role: str) -> list[Pod]:
        return [p for p in self.pods.values() if p.owner == model.uid and p.role == role]

    def pod(self, name: str, replica: int, stage: int) -> Pod:
        """The newest pod of a stage."""
        found = [p for p in self.stages(name) if (p.replica, p.stage) == (replica, stage)]
        return max(found, key=lambda p: (p.created_s, p.uid))

    def delete(self, pod: Pod, grace_s: float | None = None) -> None:
        """``kubectl delete pod``."""
        if pod.uid not in self.pods:
            return
        grace = pod.grace_s if grace_s is None else grace_s
        if (grace == 0 or not pod.node or pod.over) and not pod.held:
            del self.pods[pod.uid]
        else:
            end = self.now_s + grace
            pod.deleted_s = end if pod.deleted_s is None else min(pod.deleted_s, end)

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
            public_key=lambda role: role.ljust(40, "."),
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
            key = (action.manifest["kind"], action.manifest["metadata"]["name"])
            old = self.objects.get(key)
            item = self._stored(action.manifest)
            if old is not None:
                item["metadata"]["uid"] = old["metadata"]["uid"]
                item["status"] = old.get("status", {})
                item["metadata"]["generation"] = old["metadata"]["generation"] + 1
            self.objects[key] = item
        elif isinstance(action, Delete):
            self._delete(action)
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
            if head.stage or not self._talks(head):
                continue
            others = [p for p in self.of(model, names.ROLE_STAGE) if p.replica == head.replica]
            members, lost, meant = [], None, ""
            count = max(p.stage for p in others) + 1
            for stage in range(count):
                heard = [p for p in others if p.stage == stage and self._talks(p)]
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

    # -- what the cluster does -----------------------------------------------------------------

    def _talks(self, pod: Pod) -> bool:
        return pod.running and not pod.wedged and self.nodes[pod.node].ready

    def tick(self, seconds: float = 1.0) -> bool:
        """Time goes on; every component does one step. Whether anything changed."""
        self.now_s += seconds
        before = self._fingerprint()
        self._deployments()
        everyone = list(self.pods.values())
        self.random.shuffle(everyone)
        for pod in everyone:
            if pod.uid in self.pods:
                self._kubelet(pod)
        for model in self.models.values():
            self._close_rings(model)
        self._collect()
        return self._fingerprint() != before

    def _kubelet(self, pod: Pod) -> None:
        if pod.deleted_s is not None:
            reached = not pod.node or self.nodes[pod.node].ready
            if reached and not (pod.immortal or pod.held):
                del self.pods[pod.uid]
            return
        if pod.over:
            return
        if not pod.node:
            self._schedule(pod)
        elif not self.nodes[pod.node].ready:
            pod.ready, pod.ready_since_s = False, 0.0
        elif not pod.running:
            self._start(pod)
        elif (pod.replica, pod.stage) in self.failing and pod.role == names.ROLE_STAGE:
            pod.end(1, "Error", "it failed", self.now_s)
            pod.fail("")
        elif (pod.replica, pod.stage) in self.crashing and pod.role == names.ROLE_STAGE:
            message = self.crashing[pod.replica, pod.stage]
            pod.end(1, "Error", message, self.now_s)
            pod.waiting_reason = "CrashLoopBackOff"
        elif not pod.loaded or (not pod.ready and (pod.role == names.ROLE_GATEWAY or pod.stage)):
            self._load(pod)

    def _schedule(self, pod: Pod) -> None:
        fits = [
            name for name, node in self.nodes.items() if node.ready and self._free(name) >= pod.gpus
        ]
        if fits:
            pod.node, pod.unschedulable = self.random.choice(sorted(fits)), ""
        else:
            pod.unschedulable = f"0/{len(self.nodes)} nodes are available: Insufficient {GPU}."

    def _free(self, node: str) -> int:
        used = sum(p.gpus for p in self.pods.values() if p.node == node and not p.over)
        return self.nodes[node].gpus - used

    def _start(self, pod: Pod) -> None:
        image = pod.manifest["spec"]["containers"][0]["image"]
        if image in self.broken_images:
            pod.waiting_reason, pod.waiting_message = "ImagePullBackOff", f"no such image {image}"
            return
        if pod.last_exit is not None:
            pause = min(10 * 2 ** (pod.restart_count - 1), 300) if pod.restart_count else 0
            if self.now_s < pod.last_exit.finished_s + pause:
                return
            pod.restart_count += 1
        pod.running, pod.started_s, pod.phase = True, self.now_s, "Running"
        pod.waiting_reason = pod.waiting_message = ""

    def _load(self, pod: Pod) -> None:
        if pod.role == names.ROLE_INSPECTOR:
            found = self.profile
            ok = isinstance(found, ModelProfile)
            said = profile_message.pack(found) if ok else profile_message.pack_failure(found)
            pod.end(0 if ok else 1, "Completed" if ok else "Error", said, self.now_s)
            pod.phase = "Succeeded" if ok else "Failed"
            return
        pod.loaded = True
        if pod.role == names.ROLE_GATEWAY or pod.stage:
            pod.ready, pod.ready_since_s = True, self.now_s

    def _close_rings(self, model: Model) -> None:
        """Stage 0 is ready while every stage of its replica is heard and has its slice."""
        every = self.of(model, names.ROLE_STAGE)
        known = {one.hash: len(one.document["pods"]) for one in self._revisions(model)}
        for head in every:
            if head.stage or not head.running:
                continue
            revision = head.labels[names.LABEL_REVISION]
            heard = {
                p.stage
                for p in every
                if p.replica == head.replica
                and p.labels[names.LABEL_REVISION] == revision
                and p.loaded
                and self._talks(p)
                and p.deleted_s is None
            }
            closed = head.deleted_s is None and len(heard) >= known.get(revision, 99)
            if closed != head.ready:
                head.ready, head.ready_since_s = closed, self.now_s if closed else 0.0

    def _deployments(self) -> None:
        """One gateway more than wanted of the new template, then one less of the old."""
        for (kind, _), item in list(self.objects.items()):
            if kind != "Deployment":
                continue
            template, count = item["spec"]["template"], item["spec"]["replicas"]
            owner = item["metadata"]["labels"][names.LABEL_MODEL_UID]
            model = next((m for m in self.models.values() if m.uid == owner), None)
            if model is None:
                continue
            every = [p for p in self.of(model, names.ROLE_GATEWAY) if p.deleted_s is None]
            new = [p for p in every if p.manifest["spec"] == template["spec"]]
            old = [p for p in every if p not in new]
            if len(new) < count:
                meta = {**template["metadata"], "name": f"gateway-{next(self.counter)}"}
                pod = Pod({"metadata": meta, "spec": template["spec"]}, self.uid(), self.now_s)
                self.pods[pod.uid] = pod
            for pod in old[: sum(p.ready for p in new)] + new[count:]:
                self.delete(pod, 5)
            item["status"] = {
                "observedGeneration": item["metadata"]["generation"],
                "replicas": len(every),
                "updatedReplicas": len(new),
                "availableReplicas": sum(p.ready for p in every),
            }

    def _collect(self) -> None:
        """What belongs to nobody goes."""
        owners = {model.uid for model in self.models.values()}
        for uid in [uid for uid, pod in self.pods.items() if pod.owner not in owners]:
            del self.pods[uid]
        for items in (self.objects, self.revisions):
            for key in list(items):
                if items[key]["metadata"]["labels"][names.LABEL_MODEL_UID] not in owners:
                    del items[key]

    def _fingerprint(self) -> object:
        """Equal when nothing has changed but a container that crashes again and again."""
        pods = {
            uid: (pod.node, pod.phase, pod.running, pod.ready, pod.loaded, pod.deleted_s)
            if pod.restart_count < 2
            else (pod.node, pod.deleted_s)
            for uid, pod in self.pods.items()
        }
        objects = {
            key: (item["metadata"]["generation"], repr(item.get("status")))
            for key, item in self.objects.items()
        }
        return pods, objects, set(self.revisions)

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
