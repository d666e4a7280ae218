"""Every way to lose a stage in the simulated cluster."""

from __future__ import annotations

from collections.abc import Callable

from operator_world import Pod, World

Lose = Callable[[World, Pod], None]


def deleted(world: World, pod: Pod) -> None:
    world.delete(pod)


def gone_at_once(world: World, pod: Pod) -> None:
    world.delete(pod, 0)


def failed(reason: str, message: str = "") -> Lose:
    def lose(world: World, pod: Pod) -> None:
        pod.fail(reason, message)

    return lose


def out_of_memory(world: World, pod: Pod) -> None:
    for _ in range(2):
        pod.started_s = world.now_s - 30
        pod.end(137, "OOMKilled", at_s=world.now_s)
    pod.restart_count, pod.waiting_reason = 1, "CrashLoopBackOff"


def whole_pod_killed(world: World, pod: Pod) -> None:
    pod.end(137, "OOMKilled", at_s=world.now_s)
    pod.fail("")


def wedged(world: World, pod: Pod) -> None:
    pod.wedged = True
    world.now_s += 100


def stuck(world: World, pod: Pod) -> None:
    pod.immortal = True
    world.delete(pod)


LOSSES: dict[str, Lose] = {
    "deleted": deleted,
    "deleted with grace 0": gone_at_once,
    "failed": failed(""),
    "evicted": failed("Evicted", "The node was low on resource: memory."),
    "evicted by its own files": failed("Evicted", "ephemeral storage exceeds the total limit"),
    "preempted": failed("Preempting"),
    "node shut down": failed("Terminated", "Pod was terminated in response to node shutdown."),
    "refused by its kubelet": failed("UnexpectedAdmissionError", "no healthy devices present"),
    "out of gpu": failed("OutOfnvidia.com/gpu", "Node didn't have enough resource"),
    "killed by the kernel": whole_pod_killed,
    "killed by the kernel, twice": out_of_memory,
    "stuck terminating": stuck,
}
