"""What a user changes: replicas, the manifest, objects by hand, the operator's version, images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from e2e_autoscaling import QueueMetrics, autoscaler
from e2e_kube import wait_for
from e2e_report import Row
from e2e_traffic import Traffic
from e2e_webhook import Webhook

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_edits_by_hand_are_undone(main: Any, load: Any, table: Any, kube: Any) -> None:
    space, moment = main.namespace, time.monotonic()
    before = main.uids() | main.uids("gateway")
    kube.run("-n", space, "scale", "deployment/main-gateway", "--replicas=3")
    kube.patch("services", "main", space, {"spec": {"selector": {"lamella.dev/role": "nobody"}}})
    kube.delete("networkpolicies", "main", space)
    kube.delete("poddisruptionbudgets", "main-gateway", space)

    def undone() -> bool:
        deployment = kube.get("deployments", "main-gateway", space) or {}
        service = kube.get("services", "main", space) or {}
        return (
            deployment["spec"]["replicas"] == 2
            and service["spec"]["selector"]["lamella.dev/role"] == "gateway"
            and kube.get("networkpolicies", "main", space) is not None
            and kube.get("poddisruptionbudgets", "main-gateway", space) is not None
        )

    wait_for("all four edits are undone", undone, 90)
    seconds = round(time.monotonic() - moment, 1)
    load.flow()
    assert main.uids() == before - main.uids("gateway")
    load.stop()
    table.add(Row("objects edited and deleted by hand", "all back as they were", "", None, seconds))


def test_scale_1_3_0_1(make: Any, table: Any) -> None:
    model = make("scaled", gateway={"replicas": 1})
    model.until_ready()
    first = model.uids()
    seen = []
    for replicas in (3, 0, 1):
        began = time.monotonic()
        model.scale(replicas)
        model.until_ready(300)
        seen.append(f"{replicas}: {time.monotonic() - began:.0f} s")
        wait_for("as many pods", lambda n=replicas: len(model.pods()) == 2 * n, 60)
        scale = model.object["status"]
        assert scale["replicas"] == replicas
        if replicas == 3:
            assert first <= model.uids(), "the pipeline that served goes on"
    table.add(Row("kubectl scale 1-3-0-1", ", ".join(seen)))


@pytest.fixture
def queue(kube: Any, fresh_space: Callable[..., str]) -> Iterator[QueueMetrics]:
    queue = QueueMetrics(kube, fresh_space("metrics"))
    yield queue
    queue.remove()


def test_an_autoscaler_goes_1_3_1(make: Any, kube: Any, queue: QueueMetrics, table: Any) -> None:
    model = make("auto", gateway={"replicas": 1})
    model.until_ready()
    queue.start()
    queue.say(0)
    kube.apply(autoscaler(model.namespace, "auto", most=3, tokens_each=100))
    seen = []
    for tokens, replicas in ((250, 3), (50, 1)):
        began = time.monotonic()
        queue.say(tokens)

        def reached(want: int = replicas) -> bool:
            found = model.object
            assert found["spec"].get("replicas", 1) <= 3, "above the target"
            assert len(model.pods(stage=0)) <= 3, "a pipeline too many"
            return bool(found["status"].get("readyReplicas") == want == found["spec"]["replicas"])

        wait_for(f"{replicas} pipelines", reached, 240, 0.5)
        seen.append(f"{replicas}: {time.monotonic() - began:.0f} s")
    kube.delete("horizontalpodautoscalers", "auto", model.namespace)
    table.add(Row("a HorizontalPodAutoscaler goes 1-3-1", ", ".join(seen)))


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("a change of the manifest", {"podLabels": {"change": "1"}}),
        ("a rotation of the keys", {"keyGeneration": 2}),
    ],
    ids=["labels", "keys"],
)
def test_a_change_rolls_under_load(
    make: Any, table: Any, what: str, change: dict[str, Any]
) -> None:
    model = make("rolling", replicas=2)
    model.until_ready(240)
    with Traffic(model.url, model.name) as load:
        load.flow()
        before, moment = model.uids(), time.monotonic()
        model.apply(**change)
        model.until_ready(400)
        seconds = round(time.monotonic() - moment, 1)
        assert not model.uids() & before, "every stage is of the new manifest"
        load.flow()
        load.stop()
        told = load.since(moment)
    table.add(Row(f"{what} rolls through two pipelines", "drained one at a time",
                  f"{len(told.errors)} of {told.answers}", told.longest_pause_s,
                  seconds))  # fmt: skip
    told.assert_unharmed()


def test_the_operator_is_upgraded(main: Any, load: Any, table: Any, release: Any) -> None:
    before = main.uids() | main.uids("gateway")
    old, moment = {pod["metadata"]["uid"] for pod in release.pods()}, time.monotonic()
    release.install(podAnnotations={"e2e/upgraded-at": str(int(moment))})
    assert not {pod["metadata"]["uid"] for pod in release.pods()} & old
    led = release.until_led()
    seconds = round(time.monotonic() - moment, 1)
    gone = main.stage(1)
    main.kube.delete("pods", gone["metadata"]["name"], main.namespace)  # the new one is at work
    main.until_replaced(gone)
    load.flow(180)
    assert main.uids() | main.uids("gateway") >= before - {gone["metadata"]["uid"]}
    load.stop()
    told = load.since(moment)
    table.add(Row("the operator upgraded under load", f"{led.partition('-')[0]}: no pod changed",
                  f"{len(told.errors)} of {told.answers}", told.longest_pause_s,
                  seconds))  # fmt: skip
    told.assert_unharmed()


@pytest.fixture
def webhook(kube: Any, fresh_space: Callable[..., str]) -> Iterator[Webhook]:
    webhook = Webhook(kube, fresh_space("webhook"))
    yield webhook
    webhook.remove()


def test_a_webhook_rewrites_images(
    make: Any, webhook: Webhook, fresh_space: Callable[..., str], table: Any, release: Any
) -> None:
    space = fresh_space("rewritten", {"e2e.lamella.dev/rewrite": "yes"})
    webhook.start()
    model = make("mirrored", space, gateway={"replicas": 1})
    model.until_ready(240)
    images = {pod["spec"]["containers"][0]["image"] for pod in model.pods()}
    assert all(image.startswith("docker.io/library/") for image in images), images
    before = model.uids() | model.uids("gateway")
    release.kube.delete("pods", release.leader(), "lamella-system", grace_s=0)
    release.until_led()
    model.annotate("e2e/look=again")
    time.sleep(10)  # what must not happen has no event to wait for
    assert model.uids() | model.uids("gateway") == before
    assert model.is_ready()
    table.add(Row("a webhook rewrites every pod's image", "Ready, and no pod was made anew"))
