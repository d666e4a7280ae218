"""A small cluster in a dict: scheduler, kubelets, garbage collector, Deployments, users.

Time is a number that `tick` moves on; order is drawn from one seeded random generator. Knows no
operator.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import operator_gangs
from operator_things import GPU, Model, Node, Pod, make_profile

from lamella_contract import names, profile_message
from lamella_contract.errors import LamellaError
from lamella_contract.profile import ModelProfile


class Cluster:
    """Everything but the operator. ``random`` decides in which order things happen."""

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

    # -- what the cluster does -----------------------------------------------------------------

    def talks(self, pod: Pod) -> bool:
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
        if not operator_gangs.may_place(self, pod):
            return
        fits = [
            name for name, node in self.nodes.items() if node.ready and self.free(name) >= pod.gpus
        ]
        if fits:
            pod.node, pod.unschedulable = self.random.choice(sorted(fits)), ""
        else:
            pod.unschedulable = f"0/{len(self.nodes)} nodes are available: Insufficient {GPU}."

    def free(self, node: str) -> int:
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
        known = {
            item["metadata"]["labels"][names.LABEL_REVISION]: len(item["data"]["pods"])
            for item in self.revisions.values()
            if item["metadata"]["labels"][names.LABEL_MODEL_UID] == model.uid
        }
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
                and self.talks(p)
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
