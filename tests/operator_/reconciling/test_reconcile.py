"""One reconcile over a twin of the API server: what is seen, done, refused and told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from operator_twin_api import Answer, Store, status

from lamella_contract import names
from lamella_operator import reasons
from lamella_operator.actions import (
    Action,
    Apply,
    Create,
    Decision,
    Delete,
    EnsureKeys,
    Note,
    Release,
    ReplicaSituation,
    Situation,
    Wait,
)
from lamella_operator.reconciling.act import Actor
from lamella_operator.reconciling.client import TO_THE_END, Client
from lamella_operator.reconciling.failures import ApiError
from lamella_operator.reconciling.keys import Keys
from lamella_operator.reconciling.kinds import MODEL
from lamella_operator.reconciling.observe import ModelKey, Nodes, Observer
from lamella_operator.reconciling.reconcile import (
    ASK_AGAIN_S,
    FIRST_S,
    GONE,
    STATUS_S,
    Brain,
    Outcome,
    Reconciler,
    state_of,
)
from lamella_operator.views import ClaimView, Observed

STAMP = "2025-11-25T03:00:00Z"
KEY = ModelKey("ai", "tiny", "uid-m")
OWNER = {"kind": names.KIND, "name": "tiny", "uid": "uid-m", "controller": True}


def thing(kind: str, name: str, **labels: str) -> dict[str, Any]:
    """A manifest of the model."""
    labels = {names.LABEL_MODEL_UID: "uid-m", names.LABEL_MODEL: "tiny", **labels}
    meta = {"name": name, "namespace": "ai", "labels": labels, "ownerReferences": [OWNER]}
    return {"apiVersion": "v1", "kind": kind, "metadata": meta}


def pod(name: str, replica: int = 0, stage: int = 0) -> dict[str, Any]:
    return thing(
        "Pod",
        name,
        **{
            names.LABEL_ROLE: "stage",
            names.LABEL_REPLICA: str(replica),
            names.LABEL_STAGE: str(stage),
        },
    )


@dataclass
class Lab:
    """A reconciler whose brain does what the test says."""

    store: Store = field(default_factory=Store)
    decide: Callable[[Observed], Sequence[Action]] = lambda observed: ()
    situation: Situation = field(default_factory=Situation)
    wants_rivals: bool = False
    document: dict[str, Any] = field(default_factory=lambda: {"reason": "Ready"})
    fresh_s: float = 0.0
    seen: list[Observed] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    answer: object = None
    now_s: float = 1000.0
    echoes: list[tuple[str, str]] = field(default_factory=list)
    reconciler: Reconciler = field(init=False)
    keys: Keys = field(init=False)

    def __post_init__(self) -> None:
        client = Client(self.store, wrote=lambda uid, version: self.echoes.append((uid, version)))
        self.keys = Keys(client, "system", "root", lambda: self.now_s)

        async def ask(host: str, port: int, path: str) -> object:
            self.asked.append(f"{host}:{port}{path}")
            return self.answer

        observer = Observer(
            client,
            Nodes(client, True, lambda: self.now_s),
            ask,
            self.keys.public_key,
            ("ai",),
            lambda: self.now_s,
        )
        brain = Brain(
            self._decide,
            lambda observed: self.wants_rivals,
            lambda observed, situation: {**self.document, "refused": _refused(observed, situation)},
            lambda old, new, last_s, now_s: old != new and now_s - last_s >= self.fresh_s,
            lambda old, new: [SimpleNamespace(type="Normal", reason="Ready", message="it serves")],
        )
        self.reconciler = Reconciler(client, observer, Actor(client, self.keys), brain)

    def model(self, **meta: Any) -> dict[str, Any]:
        document = {
            "kind": names.KIND,
            "metadata": {"name": "tiny", "namespace": "ai", "generation": 1},
            "spec": {"model": {"uri": "hf://a/b"}},
        }
        return self.store.put_in(document, **{"uid": "uid-m", **meta})

    def run(self, *actions: Action) -> Outcome:
        if actions:
            self.decide = lambda observed: actions
        return asyncio.run(self.reconciler.reconcile(KEY))

    def _decide(self, observed: Observed) -> Decision:
        self.seen.append(observed)
        return Decision(tuple(self.decide(observed)), self.situation)


def _refused(observed: Observed, situation: Situation) -> list[str]:
    notes = [situation.refused.reason] if situation.refused else []
    return notes + [one.reason for one in observed.refusals]


@pytest.fixture
def lab() -> Lab:
    found = Lab()
    found.model()
    asyncio.run(found.keys.load())
    found.store.writes.clear()
    return found


# -- what is seen ---------------------------------------------------------------------------------


def test_everything_of_the_model_is_seen_and_nothing_of_others(lab: Lab) -> None:
    lab.store.put_in(pod("tiny-0-1-a", stage=1))
    lab.store.put_in(pod("tiny-0-0-a"))
    gateway = thing("Pod", "tiny-gateway-x", **{names.LABEL_ROLE: "gateway"})
    gateway["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "uid": "rs"}]
    lab.store.put_in(gateway)
    lab.store.put_in(thing("Pod", "tiny-inspect-a", **{names.LABEL_ROLE: "inspector"}))
    lab.store.put_in(thing("Service", "tiny"))
    revision = thing("ControllerRevision", "tiny-r", **{names.LABEL_REVISION: "r1"})
    lab.store.put_in({**revision, "revision": 4, "data": {"hash": "r1"}})
    copied = pod("tiny-0-0-debug")
    copied["metadata"]["ownerReferences"] = []
    lab.store.put_in(copied)
    other = pod("other-0-0-a")
    other["metadata"]["labels"][names.LABEL_MODEL_UID] = "uid-other"
    lab.store.put_in(other)
    lab.run()
    (seen,) = lab.seen
    assert [one.name for one in seen.pods] == ["tiny-0-0-a", "tiny-0-1-a"]
    assert [one.name for one in seen.gateway_pods] == ["tiny-gateway-x"]
    assert [one.name for one in seen.inspectors] == ["tiny-inspect-a"]
    assert [(one.kind, one.name) for one in seen.objects] == [("Service", "tiny")]
    assert [(one.number, one.hash, one.document) for one in seen.revisions] == [
        (4, "r1", {"hash": "r1"})
    ]
    assert seen.public_key("stage-0", 1) == lab.keys.public_key("uid-m", "stage-0", 1)
    assert not any("secrets" in path for method, path in lab.store.asked[2:])


@pytest.mark.parametrize("uid", [None, "uid-newer"], ids=["deleted", "made again"])
def test_a_model_that_is_gone_is_left_alone(uid: str | None) -> None:
    lab = Lab()
    if uid:
        lab.model(uid=uid)
    assert lab.run(Wait(1)).state == GONE
    assert not lab.seen
    assert not lab.store.writes


def test_a_model_that_is_being_deleted_is_left_to_its_owner_references(lab: Lab) -> None:
    lab.model(deletionTimestamp="2025-11-25T03:00:00Z")
    assert lab.run(Create(pod("a"))).state == GONE
    assert not lab.store.writes


READY = {
    "phase": "Running",
    "podIP": "10.0.0.9",
    "conditions": [{"type": "Ready", "status": "True"}],
    "containerStatuses": [{"state": {"running": {}}}],
}
UNREADY = {**READY, "conditions": []}


@pytest.mark.parametrize(
    ("head", "other", "asked"),
    [(READY, READY, 0), (UNREADY, READY, 1), (READY, UNREADY, 1), ({}, READY, 0)],
    ids=["all ready", "ring broken", "slice loading", "not running"],
)
def test_stage_0_is_asked_only_while_its_pipeline_is_not_ready(
    lab: Lab, head: dict[str, Any], other: dict[str, Any], asked: int
) -> None:
    lab.store.put_in({**pod("tiny-0-0-a"), "status": head})
    lab.store.put_in({**pod("tiny-0-1-a", stage=1), "status": other})
    lab.answer = {"ready": False, "lost": 1}
    outcome = lab.run()
    assert lab.asked == ["10.0.0.9:8081/status"] * asked
    assert [ring.lost for ring in lab.seen[0].rings.values()] == [1] * asked
    assert outcome.again_s == (ASK_AGAIN_S if asked else None)


def test_a_stage_0_that_does_not_answer_is_not_heard(lab: Lab) -> None:
    lab.store.put_in({**pod("tiny-0-0-a"), "status": UNREADY})
    lab.run()
    assert lab.seen[0].rings == {}


def test_nodes_are_listed_once_for_all_and_done_without_when_that_is_refused(lab: Lab) -> None:
    lab.store.put_in({**pod("tiny-0-0-a"), "spec": {"nodeName": "node-1"}})
    columns = [{"name": "Name"}, {"name": "Status"}]
    table = {"columnDefinitions": columns, "rows": [{"cells": ["node-1", "NotReady"]}]}

    def nodes(method: str, path: str, body: Any) -> Answer | None:
        import json

        return Answer(200, json.dumps(table).encode()) if path.endswith("/nodes") else None

    lab.store.before = nodes
    lab.run()
    lab.run()
    assert [path for _, path in lab.store.asked].count("/api/v1/nodes?includeObject=None") == 1
    assert [seen.pods[0].node_ready for seen in lab.seen] == [False, False]
    no = status(403, "Forbidden")
    lab.store.before = lambda method, path, body: no if path.endswith("/nodes") else None
    lab.now_s += 60
    lab.run()
    assert lab.seen[-1].pods[0].node_ready


def test_rivals_are_looked_for_only_when_they_matter(lab: Lab) -> None:
    placed = {**pod("tiny-0-0-a"), "spec": {"nodeName": "node-1"}}
    lab.store.put_in(placed)
    lab.run()
    assert not any("fieldSelector" in path for _, path in lab.store.asked)
    lab.wants_rivals = True
    lab.run()
    # the twin knows no field selectors, so each pod is both placed and waiting
    assert [(one.model_uid, one.replica) for one in lab.seen[-1].rivals] == [("uid-m", 0)]


# -- what is done ---------------------------------------------------------------------------------


def test_actions_are_done_in_order_and_doing_them_again_is_harmless(lab: Lab) -> None:
    old = lab.store.put_in(pod("tiny-0-0-old"))
    actions = (
        EnsureKeys(("stage-0",)),
        Create(thing("ControllerRevision", "tiny-r")),
        Create(pod("tiny-0-0-new"), "0"),
        Apply(thing("Service", "tiny")),
        Delete("Pod", "tiny-0-0-old", old["metadata"]["uid"], 0, "it failed"),
        Wait(30),
        Wait(7),
    )
    outcome = lab.run(*actions)
    kinds = [(method, path.split("/")[-1]) for method, path in lab.store.writes]
    assert kinds == [
        ("POST", "secrets"),
        ("POST", "controllerrevisions"),
        ("POST", "pods"),
        ("PATCH", "tiny"),
        ("DELETE", "tiny-0-0-old"),
        ("POST", "events"),
        ("PATCH", "status"),
    ]
    assert outcome.again_s == 7
    before = {path: one["metadata"]["uid"] for path, one in lab.store.objects.items()}
    again = lab.run(*actions)
    assert {path: one["metadata"]["uid"] for path, one in lab.store.objects.items()} == before
    assert again.state == outcome.state


@pytest.mark.parametrize("after", range(1, 7), ids=lambda count: f"after {count} writes")
def test_an_operator_that_is_killed_after_any_write_is_finished_by_the_next(after: int) -> None:
    def story(writes: int) -> dict[str, str]:
        lab = Lab()
        lab.model()
        asyncio.run(lab.keys.load())
        actions = (
            EnsureKeys(("stage-0",)),
            Create(pod("tiny-0-0-a"), "0"),
            Create(pod("tiny-0-1-a", stage=1), "0"),
            Apply(thing("Service", "tiny")),
        )
        lab.store.writes.clear()

        def kill(method: str, path: str, body: Any) -> None:
            if method != "GET" and len(lab.store.writes) >= writes:
                raise KeyboardInterrupt

        lab.store.before = kill
        try:
            lab.run(*actions)
        except KeyboardInterrupt:
            lab.store.before = lambda *_: None
            lab.run(*actions)
        return {
            path: str(one.get("status", ""))
            for path, one in lab.store.objects.items()
            if "/events/" not in path
        }

    assert story(after) == story(1000)


REFUSED = {
    "quota": (status(403, "Forbidden", "pods is forbidden: exceeded quota: q"), "QuotaExceeded"),
    "role": (
        status(403, "Forbidden", 'pods is forbidden: User "x" cannot create resource "pods"'),
        "Forbidden",
    ),
    "limits": (
        status(403, "Forbidden", "pods is forbidden: maximum memory usage per Container is 1Gi"),
        "LimitRange",
    ),
    "podsecurity": (
        status(403, "Forbidden", 'pods is forbidden: violates PodSecurity "restricted"'),
        "AdmissionRefused",
    ),
    "webhook": (status(400, "BadRequest", 'admission webhook "x" denied'), "AdmissionRefused"),
    "ending": (
        status(403, "Forbidden", "unable to create: because it is being terminated"),
        "NamespaceTerminating",
    ),
    "invalid": (status(422, "Invalid", "spec.x: Required"), "AdmissionRefused"),
}


@pytest.mark.parametrize(("answer", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refused_pod_takes_its_whole_group_back_and_is_told(
    lab: Lab, answer: Answer, reason: str
) -> None:
    lab.store.before = lambda method, path, body: (
        answer if method == "POST" and body["metadata"]["name"] == "tiny-0-2-a" else None
    )
    existing = lab.store.put_in(pod("tiny-1-0-a", replica=1))
    outcome = lab.run(
        Create(pod("tiny-0-0-a"), "0"),
        Create(pod("tiny-0-1-a", stage=1), "0"),
        Create(pod("tiny-0-2-a", stage=2), "0"),
        Create(pod("tiny-0-3-a", stage=3), "0"),
        Create(pod("tiny-1-0-a", replica=1), "1"),
        Create(pod("tiny-1-1-a", replica=1, stage=1), "1"),
        Apply(thing("Service", "tiny")),
        Wait(15),
    )
    assert lab.store.named("Pod") == ["tiny-1-0-a", "tiny-1-1-a"]
    assert existing["metadata"]["uid"] in str(lab.store.objects)
    assert lab.store.named("Service") == ["tiny"]
    (refusal,) = lab.seen[-1].refusals
    assert (refusal.reason, refusal.replica, refusal.stage) == (reason, 0, 2)
    assert refusal.reason in reasons.ALL
    assert lab.store.objects["/apis/lamella.dev/v1alpha1/namespaces/ai/shardedmodels/tiny"][
        "status"
    ]["refused"] == [reason]
    assert outcome.again_s == 15


def test_a_refused_apply_ends_the_round(lab: Lab) -> None:
    lab.store.before = lambda method, path, body: (
        status(422, "Invalid", "immutable") if method == "PATCH" and "services" in path else None
    )
    lab.run(Apply(thing("Service", "tiny")), Create(pod("tiny-0-0-a"), "0"))
    assert lab.store.named("Pod") == []
    assert lab.seen[-1].refusals[0].message == "Service tiny: immutable"


@pytest.mark.parametrize("kind", ["Service", "Pod"])
def test_what_belongs_to_somebody_else_is_never_taken(lab: Lab, kind: str) -> None:
    theirs = thing(kind, "tiny")
    theirs["metadata"] |= {"labels": {}, "ownerReferences": [{"kind": "Deployment", "name": "web"}]}
    stored = lab.store.put_in(theirs)
    action = Apply(thing(kind, "tiny")) if kind == "Service" else Create(pod("tiny"), "0")
    lab.run(action)
    assert stored["metadata"]["labels"] == {}
    (refusal,) = lab.seen[-1].refusals
    assert refusal.reason == reasons.NAME_CONFLICT
    assert "belongs to Deployment web" in refusal.message


def test_what_a_deleted_model_of_that_name_left_is_waited_for(lab: Lab) -> None:
    old = thing("Service", "tiny")
    old["metadata"]["ownerReferences"] = [{**OWNER, "uid": "uid-older"}]
    old["metadata"]["labels"][names.LABEL_MODEL_UID] = "uid-older"
    stored = lab.store.put_in(old)
    outcome = lab.run(Apply(thing("Service", "tiny")))
    assert outcome.again_s == 2
    del lab.store.objects[f"/api/v1/namespaces/ai/services/{stored['metadata']['name']}"]
    lab.run(Apply(thing("Service", "tiny")))
    (service,) = (one for path, one in lab.store.objects.items() if "/services/" in path)
    assert service["metadata"]["ownerReferences"][0]["uid"] == "uid-m"


def test_what_is_made_for_the_first_time_costs_one_request(lab: Lab) -> None:
    lab.run(Apply(thing("Service", "tiny")))
    path = "/api/v1/namespaces/ai/services/tiny"
    (asked,) = [one for one in lab.store.asked if one[1].startswith(path)]
    assert asked[0] == "PATCH"
    assert lab.store.named("Service") == ["tiny"]


def test_what_is_ours_and_was_not_seen_is_applied(lab: Lab) -> None:
    ours = thing("Service", "tiny")
    del ours["metadata"]["labels"]  # so that no LIST by labels shows it
    lab.store.put_in(ours)
    lab.run(Apply(thing("Service", "tiny")))
    assert lab.seen[-1].refusals == ()
    (service,) = (one for path, one in lab.store.objects.items() if "/services/" in path)
    assert service["metadata"]["labels"][names.LABEL_MODEL_UID] == "uid-m"


def test_one_models_lists_have_no_pages(lab: Lab) -> None:
    """Many API servers read the whole namespace from etcd for a page of a selection."""
    lab.run()
    lists = [path for method, path in lab.store.asked if "labelSelector" in path]
    assert lists
    assert not any("limit=" in path for path in lists)


def test_an_object_of_another_uid_is_not_deleted(lab: Lab) -> None:
    lab.store.put_in(pod("tiny-0-0-a"))
    lab.run(Delete("Pod", "tiny-0-0-a", "uid-older"))
    assert lab.store.named("Pod") == ["tiny-0-0-a"]


# -- what is told ---------------------------------------------------------------------------------


def test_nothing_is_written_when_nothing_changes(lab: Lab) -> None:
    lab.run()
    lab.store.writes.clear()
    for _ in range(3):
        assert lab.run().writes == 0
    assert lab.store.writes == []


def test_the_first_status_waits_for_more_to_tell_after_an_inspector_was_made(lab: Lab) -> None:
    lab.situation = Situation(unresolved=Note(reasons.RESOLVING, "an inspector is made"))
    inspector = thing("Pod", "tiny-inspect-a", **{names.LABEL_ROLE: names.ROLE_INSPECTOR})
    assert lab.run(Create(inspector), Wait(15)).again_s == FIRST_S
    assert [path.split("/")[-1] for _, path in lab.store.writes] == ["pods"]
    lab.run(Wait(15))
    assert [path.split("/")[-1] for _, path in lab.store.writes] == ["pods", "events", "status"]


def test_a_first_refusal_is_told_at_once(lab: Lab) -> None:
    lab.situation = Situation(unresolved=Note(reasons.RESOLVING, "an inspector is made"))
    no = status(403, "Forbidden", "pods is forbidden: exceeded quota: q")
    lab.store.before = lambda method, path, body: (
        no if (method, path[-5:]) == ("POST", "/pods") else None
    )
    lab.run(Create(thing("Pod", "tiny-inspect-a", **{names.LABEL_ROLE: names.ROLE_INSPECTOR})))
    assert lab.store.writes[-1][1].endswith("/status")


def listed(lab: Lab) -> set[str]:
    """Kinds that were listed, by plural."""
    paths = [path.split("?")[0] for _, path in lab.store.asked if "labelSelector" in path]
    return {path.split("/")[-1] for path in paths}


AROUND = {"services", "deployments", "poddisruptionbudgets", "networkpolicies"}


@pytest.mark.parametrize(
    ("there", "role", "around"),
    [
        ("", "", False),
        ("Pod", names.ROLE_INSPECTOR, False),
        ("Pod", names.ROLE_STAGE, True),
        ("Pod", names.ROLE_GATEWAY, True),
        ("ControllerRevision", "", True),
    ],
    ids=["nothing", "an inspector", "a stage", "a gateway", "a revision"],
)
def test_what_is_made_after_a_revision_is_listed_only_where_there_may_be_any(
    lab: Lab, there: str, role: str, around: bool
) -> None:
    if there:
        lab.store.put_in(thing(there, "tiny-x", **({names.LABEL_ROLE: role} if role else {})))
    lab.run()
    assert listed(lab) == {"pods", "controllerrevisions"} | (AROUND if around else set())


def test_a_model_whose_status_names_a_revision_is_looked_at_wholly(lab: Lab) -> None:
    lab.document = {"reason": "Ready", "updateRevision": "r"}
    lab.run()
    lab.store.asked.clear()
    lab.run()
    assert listed(lab) == {"pods", "controllerrevisions"} | AROUND


def test_echoes_of_the_status_and_of_what_is_applied_are_foretold(lab: Lab) -> None:
    lab.run(Apply(thing("Service", "tiny")), Create(pod("tiny-0-0-a")))
    objects = {path.split("/")[-2]: one["metadata"] for path, one in lab.store.objects.items()}
    assert lab.echoes == [
        (objects[kind]["uid"], objects[kind]["resourceVersion"])
        for kind in ("services", "shardedmodels")
    ]


@pytest.mark.parametrize(
    "change",
    [{"generation": 2}, {"annotations": {names.ANNOTATION_RESUME: "1"}}],
    ids=["spec", "annotation"],
)
def test_the_echo_of_a_status_is_news_when_the_manifest_changed_meanwhile(
    lab: Lab, change: dict[str, Any]
) -> None:
    def changed(method: str, path: str, body: Any) -> None:
        if path.endswith("/status"):
            lab.model(**change)

    lab.store.before = changed
    lab.run()
    assert lab.echoes == []


def test_an_inspector_that_has_ended_is_deleted_and_not_heard_of_again(lab: Lab) -> None:
    inspectors = [
        {
            **thing("Pod", f"tiny-{phase}", **{names.LABEL_ROLE: names.ROLE_INSPECTOR}),
            "status": {"phase": phase},
        }
        for phase in ("Succeeded", "Running")
    ]
    uids = [lab.store.put_in(one)["metadata"]["uid"] for one in inspectors]
    lab.run(
        *(
            Delete("Pod", one["metadata"]["name"], uid)
            for one, uid in zip(inspectors, uids, strict=True)
        )
    )
    assert (uids[0], TO_THE_END) in lab.echoes
    assert uids[1] not in {uid for uid, _ in lab.echoes}


def test_a_status_that_is_not_worth_writing_yet_is_written_later(lab: Lab) -> None:
    lab.fresh_s = 10
    assert lab.run().again_s is None
    lab.store.writes.clear()
    lab.document = {"reason": "Ready", "percent": 5}
    lab.now_s += 3
    assert lab.run().again_s == STATUS_S
    assert lab.store.writes == []
    lab.now_s += STATUS_S
    assert lab.run().again_s is None
    assert [path.split("/")[-1] for _, path in lab.store.writes] == ["events", "status"]


def test_an_event_that_is_not_taken_does_not_keep_the_status_back(lab: Lab) -> None:
    no = status(403, "Forbidden")
    lab.store.before = lambda method, path, body: no if path.endswith("/events") else None
    lab.run()
    assert lab.store.writes[-1][1].endswith("/status")


def test_the_same_transition_has_the_same_event(lab: Lab) -> None:
    def cut(method: str, path: str, body: Any) -> None:
        if path.endswith("/status"):
            raise KeyboardInterrupt

    lab.store.before = cut
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            lab.run()
    (name,) = lab.store.named("Event")
    assert name.startswith("tiny.")


def test_a_model_that_was_made_again_is_not_given_the_old_ones_status(lab: Lab) -> None:
    def made_again(method: str, path: str, body: Any) -> None:
        if path.endswith("/status"):
            lab.model(uid="uid-newer")

    lab.store.before = made_again
    with pytest.raises(ApiError):
        lab.run()
    (model,) = (one for path, one in lab.store.objects.items() if "shardedmodels" in path)
    assert "status" not in model


def test_with_a_crd_that_is_too_old_nothing_is_done_and_that_is_told(lab: Lab) -> None:
    lab.reconciler.crd_problem = "too old"
    lab.run(Create(pod("tiny-0-0-a"), "0"))
    assert lab.store.named("Pod") == []
    assert not lab.seen
    (model,) = (one for path, one in lab.store.objects.items() if "shardedmodels" in path)
    assert model["status"]["refused"] == [reasons.CRD_TOO_OLD]


def test_an_api_server_that_is_away_is_raised(lab: Lab) -> None:
    lab.store.before = lambda *_: status(401, "Unauthorized")
    with pytest.raises(ApiError):
        lab.run()


NOTE = Note("X", "y")
SERVING = ReplicaSituation(0, "r", True, "Ready", ())


@pytest.mark.parametrize(
    ("situation", "state"),
    [
        (Situation(refused=NOTE), "Refused"),
        (Situation(degraded=NOTE), "Degraded"),
        (Situation(paused=True), "Paused"),
        (Situation(unresolved=NOTE), "NotReady"),
        (Situation(wanted_replicas=1), "NotReady"),
        (Situation(wanted_replicas=2, replicas=(SERVING,)), "Progressing"),
        (Situation(wanted_replicas=1, replicas=(SERVING,), rolling=NOTE), "Progressing"),
        (Situation(wanted_replicas=1, replicas=(SERVING,)), "Ready"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_word_for_a_model(situation: Situation, state: str) -> None:
    assert state_of(situation) == state


FINALIZER = "kueue.x-k8s.io/managed"


def group(name: str = "g", replica: int = 0) -> dict[str, Any]:
    found = thing("PodGroup", name, **{names.LABEL_REPLICA: str(replica)})
    return {**found, "apiVersion": "scheduling.volcano.sh/v1beta1", "spec": {"minMember": 2}}


def no_groups(method: str, path: str, body: Any) -> Answer | None:
    """An API server without that CRD."""
    return Answer(404, b"404 page not found") if "/podgroups" in path else None


def test_a_gang_whose_system_is_missing_holds_up_its_pipeline_alone(lab: Lab) -> None:
    lab.store.before = no_groups
    lab.run(
        Apply(group(), "replica-1"),
        Create(pod("a", 1), "replica-1"),
        Create(pod("b", 0), ""),
        Apply(thing("Service", "s")),
    )
    assert lab.store.named("Pod") == ["b"]
    assert lab.store.named("Service") == ["s"]
    (refused,) = lab.seen[-1].refusals
    assert refused.reason == reasons.GANG_SYSTEM_MISSING
    assert "no PodGroup of scheduling.volcano.sh/v1beta1" in refused.message
    assert (refused.replica, refused.stage) == (0, None)


def test_groups_are_seen_only_where_they_are_asked_for(lab: Lab) -> None:
    lab.store.put_in(group(), namespace="ai")
    lab.run(Wait(1))
    assert [one.kind for one in lab.seen[-1].objects] == []
    assert not any("podgroups" in path for _, path in lab.store.asked)
    lab.model()["spec"]["scheduling"] = {"gang": "Volcano"}
    lab.run(Wait(1))
    assert [one.kind for one in lab.seen[-1].objects] == ["PodGroup.scheduling.volcano.sh"]
    lab.store.before = no_groups
    lab.run(Wait(1))
    assert [one.kind for one in lab.seen[-1].objects] == []


def test_a_group_is_applied_deleted_and_taken_over_from_nobody(lab: Lab) -> None:
    lab.model()["spec"]["scheduling"] = {"gang": "Volcano"}
    lab.run(Apply(group(), "replica-0"))
    (seen,) = (lab.run(Wait(1)), *lab.seen[-1].objects)[1:]
    lab.run(Delete(seen.kind, "g", seen.uid))
    assert not any("podgroups" in path for path in lab.store.objects)


@pytest.mark.parametrize(
    ("finalizers", "left"),
    [((FINALIZER,), []), (("other", FINALIZER), ["other"]), (("stale",), ["other", FINALIZER])],
    ids=["its own", "beside another", "changed meanwhile"],
)
def test_a_pod_is_released_if_it_is_as_it_was_seen(
    lab: Lab, finalizers: tuple[str, ...], left: list[str]
) -> None:
    held = list(finalizers) if left != ["other", FINALIZER] else ["other", FINALIZER]
    made = lab.store.put_in(pod("a"), namespace="ai", finalizers=held)
    lab.run(Release("a", made["metadata"]["uid"], finalizers, FINALIZER))
    assert made["metadata"]["finalizers"] == left
    lab.run(Release("gone", "uid-x", (FINALIZER,), FINALIZER))


@pytest.mark.parametrize("gone", [True, False], ids=["gone", "being deleted"])
def test_nothing_of_a_model_that_goes_is_held_for_ever(lab: Lab, gone: bool) -> None:
    ends = {"namespace": "ai", "finalizers": [FINALIZER], "deletionTimestamp": STAMP}
    ending = lab.store.put_in(pod("a"), **ends)
    stays = lab.store.put_in(pod("b"), namespace="ai", finalizers=[FINALIZER])
    if gone:
        lab.store.objects.pop(MODEL.path("ai", "tiny"))
    else:
        lab.model(deletionTimestamp=STAMP)
    assert lab.run(Wait(1)).state == GONE
    assert ending["metadata"]["finalizers"] == []
    assert stays["metadata"]["finalizers"] == [FINALIZER]


@pytest.mark.parametrize("answer", ["there", "missing", "forbidden"])
def test_claims_are_read_where_the_manifest_names_them(lab: Lab, answer: str) -> None:
    lab.run(Wait(1))
    assert not any("persistentvolumeclaims" in path for _, path in lab.store.asked)
    lab.model()["spec"] = {"model": {"uri": "pvc://c/m"}, "cache": {"claimName": "c"}}
    if answer == "there":
        claim = thing("PersistentVolumeClaim", "c") | {"spec": {"accessModes": ["ReadWriteOnce"]}}
        lab.store.put_in(claim, namespace="ai")
    elif answer == "forbidden":
        no = status(403, "Forbidden")
        lab.store.before = lambda method, path, body: no if "claims" in path else None
    lab.run(Wait(1))
    assert (
        lab.seen[-1].claims
        == {
            "there": (ClaimView("c", True, ("ReadWriteOnce",)),),
            "missing": (ClaimView("c", exists=False),),
            "forbidden": (),
        }[answer]
    )
