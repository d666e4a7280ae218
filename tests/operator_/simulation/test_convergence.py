"""Whatever happens, and wherever the operator dies: in the end the wanted pipelines serve.

Hypothesis plays users, nodes and crashes against the simulated cluster, which itself refuses what
the operator may never do. ``LAMELLA_EXAMPLES=2000`` plays
longer, ``LAMELLA_SHRINK=1`` shortens the story of a failure.
"""

from __future__ import annotations

import copy
import itertools
import os
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from operator_world import Pod, World, make_body

from lamella_contract import names
from lamella_contract.errors import AuthRequired, HubUnreachable
from lamella_operator.actions import Wait

EXAMPLES = int(os.environ.get("LAMELLA_EXAMPLES", "60"))
SHRINK = "LAMELLA_SHRINK" in os.environ  # minutes more, for a shorter story of a failure

CHANGES: list[dict[str, Any]] = [
    {},
    {"podLabels": {"team": "search"}},
    {"scheduling": {"timeoutSeconds": 20, "gang": "Coscheduling"}},
    {"context": {"maxLength": 2048}},
    {"pipeline": {"stages": 3, "stageMemory": "24Gi"}},
    {"pipeline": {"stages": 1, "stageMemory": "24Gi"}},
    {"model": {"uri": "hf://Qwen/Other"}},
]
HARMLESS: list[dict[str, Any]] = [
    {"pipeline": {"stages": 2, "stageMemory": "1Gi"}},  # does not fit
    {"newField": 1},  # does not parse
    {"paused": True},
]
FAILURES = [
    ("Evicted", "The node was low on resource: memory."),
    ("Evicted", "ephemeral storage exceeds the total limit"),
    ("UnexpectedAdmissionError", "no healthy devices"),
    ("OutOfnvidia.com/gpu", ""),
    ("NodeLost", ""),
    ("", "failed"),
]
picks = st.integers(0, 1000)


class Cluster(RuleBasedStateMachine):
    """One or two models in a cluster where everything can go wrong."""

    @initialize(
        seed=st.integers(0, 10_000),
        replicas=st.integers(0, 3),
        unavailable=st.integers(0, 2),
        surge=st.integers(0, 2),
        two=st.booleans(),
        gang=st.sampled_from(["None", "None", "None", "Kueue", "Volcano"]),
    )
    def start(
        self, seed: int, replicas: int, unavailable: int, surge: int, two: bool, gang: str
    ) -> None:
        self.world = World(seed, nodes=3, gpus=8)
        rollout = {"maxUnavailable": unavailable, "maxSurge": surge or int(not unavailable)}
        self.base = make_body(
            replicas=replicas,
            rollout=rollout,
            scheduling={"timeoutSeconds": 20, "gang": gang}
            | ({} if gang == "None" else {"queueName": "team"}),
            recovery={"maxRestarts": 3},
        )
        self.bodies = {}
        for name in ("a", "b") if two else ("a",):
            self.world.apply(name, self.base)
            self.bodies[name] = self.base

    def name(self, pick: int) -> str:
        return sorted(self.bodies)[pick % len(self.bodies)]

    def some(self, pick: int) -> Pod | None:
        every = sorted(self.world.pods.values(), key=lambda pod: pod.uid)
        staged = [pod for pod in every if pod.role != names.ROLE_GATEWAY]
        return staged[pick % len(staged)] if staged else None

    # -- the operator works, or dies at work -----------------------------------------------------

    @rule(count=st.integers(1, 6))
    def work(self, count: int) -> None:
        for _ in range(count):
            for model in list(self.world.models.values()):
                self.world.reconcile(model)
            self.world.tick()

    @rule(pick=picks, after=st.integers(0, 12))
    def die_at_work(self, pick: int, after: int) -> None:
        self.world.reconcile(self.world.models[self.name(pick)], crash_after=after)

    @rule(seconds=st.sampled_from([1, 5, 35, 100, 700]))
    def wait(self, seconds: int) -> None:
        self.world.tick(seconds)

    # -- users -----------------------------------------------------------------------------------

    @rule(pick=picks, change=st.sampled_from(CHANGES))
    def change(self, pick: int, change: dict[str, Any]) -> None:
        name = self.name(pick)
        self.bodies[name] = {**self.base, "replicas": self.bodies[name]["replicas"], **change}
        self.world.apply(name, self.bodies[name])

    @rule(pick=picks, change=st.sampled_from(HARMLESS))
    def change_for_the_worse(self, pick: int, change: dict[str, Any]) -> None:
        self.world.apply(self.name(pick), {**self.bodies[self.name(pick)], **change})

    @rule(pick=picks, replicas=st.integers(0, 3))
    def scale(self, pick: int, replicas: int) -> None:
        name = self.name(pick)
        self.bodies[name] = {**self.bodies[name], "replicas": replicas}
        self.world.apply(name, self.bodies[name])

    @rule(pick=picks, grace_s=st.sampled_from([None, 0]))
    def delete_a_pod(self, pick: int, grace_s: float | None) -> None:
        if pod := self.some(pick):
            self.world.delete(pod, grace_s)

    @rule(pick=picks)
    def delete_an_object(self, pick: int) -> None:
        keys = sorted(self.world.objects)
        if keys:
            del self.world.objects[keys[pick % len(keys)]]

    @rule(pick=picks)
    def delete_a_revision(self, pick: int) -> None:
        keys = sorted(self.world.revisions)
        if keys:
            del self.world.revisions[keys[pick % len(keys)]]

    @rule(pick=picks)
    def lose_the_status(self, pick: int) -> None:
        self.world.models[self.name(pick)].status = {}

    # -- the cluster -----------------------------------------------------------------------------

    @rule(pick=picks, failure=st.sampled_from(FAILURES))
    def fail_a_pod(self, pick: int, failure: tuple[str, str]) -> None:
        if pod := self.some(pick):
            pod.fail(*failure)

    @rule(pick=picks)
    def kill_a_container_twice(self, pick: int) -> None:
        pod = self.some(pick)
        if pod is not None and pod.running:
            pod.end(137, "OOMKilled", at_s=self.world.now_s)
            pod.restart_count += 1

    @rule(pick=picks)
    def wedge_a_stage(self, pick: int) -> None:
        pod = self.some(pick)
        if pod is not None and pod.stage:
            pod.wedged = True

    @rule(pick=picks)
    def hold_a_pod(self, pick: int) -> None:
        if pod := self.some(pick):
            pod.immortal = True

    @rule(pick=picks)
    def hold_a_pod_by_a_finalizer(self, pick: int) -> None:
        if pod := self.some(pick):
            pod.held = True

    @rule(pick=picks)
    def toggle_a_node(self, pick: int) -> None:
        every = sorted(self.world.nodes)
        node = self.world.nodes[every[pick % len(every)]]
        node.ready = not node.ready

    @rule(quota=st.sampled_from([None, 2, 5]))
    def set_quota(self, quota: int | None) -> None:
        self.world.quota = quota

    @rule(gpus=st.sampled_from([0, 1, 2, 8]))
    def set_gpus(self, gpus: int) -> None:
        self.world.nodes["node-0"].gpus = self.world.nodes["node-1"].gpus = gpus

    @rule(pick=picks, broken=st.booleans())
    def break_a_stage(self, pick: int, broken: bool) -> None:
        if broken:
            self.world.crashing[pick % 2, pick % 3] = "boom"
        else:
            self.world.crashing.clear()

    @rule(broken=st.booleans())
    def break_the_image(self, broken: bool) -> None:
        self.world.broken_images = {"registry.test/worker:1"} if broken else set()

    @rule(what=st.sampled_from(["ok", "away", "forbidden"]))
    def change_the_hub(self, what: str) -> None:
        found = {"ok": self.profile(), "away": HubUnreachable("x"), "forbidden": AuthRequired("y")}
        self.world.profile = found[what]

    @staticmethod
    def profile() -> Any:
        return World().profile

    @precondition(lambda self: bool(self.world.pods))
    @rule(pick=picks)
    def copy_a_pod(self, pick: int) -> None:
        """Somebody (an operator that was thought dead) made a second pod for a stage."""
        pod = self.some(pick)
        if pod is None or pod.role != names.ROLE_STAGE:
            return
        twin = copy.deepcopy(pod)
        twin.uid, twin.created_s = self.world.uid(), self.world.now_s
        twin.manifest = {
            **twin.manifest,
            "metadata": {**twin.manifest["metadata"], "name": f"twin-{twin.uid}"},
        }
        self.world.pods[twin.uid] = twin

    # -- in the end --------------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        for node in world.nodes.values():
            node.ready, node.gpus = True, 8
        world.quota, world.broken_images, world.profile = None, set(), self.profile()
        world.crashing.clear()
        for name, body in self.bodies.items():
            world.apply(name, body)
            world.models[name].annotations["lamella.dev/resume"] = "at the end"
        for pod in world.pods.values():
            pod.wedged = pod.held = False
        world.settle(1500)
        for name in self.bodies:
            check_converged(world, name)


def check_converged(world: World, name: str) -> None:
    """What the manifest asks for is there, serves, and nothing else is."""
    model = world.models[name]
    pods = world.stages(name)
    decision = world.reconcile(model)
    assert [one for one in decision.actions if not isinstance(one, Wait)] == []
    situation = decision.situation
    wanted = model.body["replicas"]
    assert situation.refused is situation.unplanned is situation.unresolved is None
    assert situation.degraded is None, situation.degraded
    assert situation.rolling is None, situation.rolling
    assert [one.state for one in situation.replicas] == ["Ready"] * wanted
    stages = model.body["pipeline"]["stages"]
    for replica, group in itertools.groupby(pods, key=lambda pod: pod.replica):
        every = list(group)
        assert [pod.stage for pod in every] == list(range(stages)), replica
        assert {pod.labels[names.LABEL_REVISION] for pod in every} == {situation.revision}
        assert all(pod.ready and pod.deleted_s is None for pod in every)
    assert len({pod.replica for pod in pods}) == wanted
    assert world.of(model, names.ROLE_INSPECTOR) == []
    rings = {key for kind, key in world.objects if kind == "Service" and "-ring-" in key}
    assert len([key for key in rings if key.startswith(f"{name}-")]) == wanted
    assert situation.gateways_ready == 1


TestCluster = Cluster.TestCase
TestCluster.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate, *([Phase.shrink] if SHRINK else [])],
)
