"""Flags and environment become settings, whole or not at all; probes say why."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from lamella_contract.errors import InvalidConfig
from lamella_operator.reconciling.observe import ModelKey
from lamella_operator.reconciling.reconcile import GONE, READY, Outcome
from lamella_operator.running import http
from lamella_operator.running.flags import Process, parse
from lamella_operator.running.metrics import Metrics
from lamella_operator.settings import Settings

IMAGES = ("--worker-image=w", "--operator-image=o")
BASE = Settings("w", "o")


def test_flags_alone_are_the_defaults() -> None:
    settings, process = parse(IMAGES, {})
    assert settings == BASE
    assert process.identity
    assert process.port == 8083


GOOD: dict[str, tuple[tuple[str, ...], dict[str, str], dict[str, Any]]] = {
    "list": (("--namespaces=a, b,",), {}, {"namespaces": ("a", "b")}),
    "empty list": (("--namespaces=",), {}, {"namespaces": ()}),
    "seconds": (("--resync-s=2.5",), {}, {"resync_s": 2.5}),
    "bytes": (("--staging-bytes=3Gi",), {}, {"staging_bytes": 3 << 30}),
    "flag": (("--allow-host-path=true",), {}, {"allow_host_path": True}),
    "proxy": (
        ("--proxy=HTTP_PROXY=http://p:1", "--proxy=NO_PROXY=a,b"),
        {},
        {"proxy": (("HTTP_PROXY", "http://p:1"), ("NO_PROXY", "a,b"))},
    ),
    "environment": ((), {"LAMELLA_OPERATOR_NAMESPACE": "ops"}, {"namespace": "ops"}),
    "flag wins": (
        ("--namespace=flag",),
        {"LAMELLA_OPERATOR_NAMESPACE": "env"},
        {"namespace": "flag"},
    ),
    "proxies of the environment": (
        (),
        {"LAMELLA_OPERATOR_PROXY": "HTTP_PROXY=x;NO_PROXY=a,b"},
        {"proxy": (("HTTP_PROXY", "x"), ("NO_PROXY", "a,b"))},
    ),
    "empty variable": ((), {"LAMELLA_OPERATOR_NAMESPACE": ""}, {}),
    "other variables": ((), {"LAMELLA_LOG_LEVEL": "DEBUG", "HOME": "/"}, {}),
}


@pytest.mark.parametrize(("flags", "environ", "wanted"), GOOD.values(), ids=GOOD.keys())
def test_what_is_understood(
    flags: tuple[str, ...], environ: dict[str, str], wanted: dict[str, Any]
) -> None:
    settings, _ = parse((*IMAGES, *flags), environ)
    assert settings == Settings(**{"worker_image": "w", "operator_image": "o", **wanted})


BAD = {
    "unknown flag": ((*IMAGES, "--worker-imag=x"), {}, "did you mean 'worker_image'"),
    "unknown variable": (IMAGES, {"LAMELLA_OPERATOR_NAMESPACE_": "x"}, "unknown"),
    "missing": (("--worker-image=w",), {}, "--operator-image: missing"),
    "no value": ((*IMAGES, "--namespace"), {}, "want --name=value"),
    "not a flag": ((*IMAGES, "run"), {}, "want --name=value"),
    "twice": ((*IMAGES, "--namespace=a", "--namespace=b"), {}, "stands 2 times"),
    "yes": ((*IMAGES, "--allow-host-path=yes"), {}, "want true or false"),
    "no seconds": ((*IMAGES, "--resync-s=0"), {}, "want seconds above 0"),
    "nan": ((*IMAGES, "--resync-s=nan"), {}, "want seconds above 0"),
    "no bytes": ((*IMAGES, "--staging-bytes=3GB"), {}, "want bytes"),
    "proxy": ((*IMAGES, "--proxy=http://p:1"), {}, "want one of HTTP_PROXY"),
}


@pytest.mark.parametrize(("flags", "environ", "message"), BAD.values(), ids=BAD.keys())
def test_what_is_refused(flags: tuple[str, ...], environ: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        parse(flags, environ)


def test_of_the_process() -> None:
    _, process = parse((*IMAGES, "--port=0", "--workers=2", "--identity=me", "--lease=l"), {})
    assert process == Process(port=0, workers=2, identity="me", lease="l")
    _, one = parse(IMAGES, {"LAMELLA_POD_NAME": "pod-a"})
    _, two = parse(IMAGES, {"LAMELLA_POD_NAME": "pod-a"})
    assert one.identity.startswith("pod-a_")
    assert one.identity != two.identity  # a container that was restarted is another contender


def test_probes_and_metrics() -> None:
    async def story() -> None:
        said = {"alive": "", "ready": "waiting for the CRD"}
        metrics = Metrics()
        key = ModelKey("ai", "tiny", "u")
        metrics.outcome(key, Outcome(READY, None))
        metrics.request("list", "pods", 200)
        probes = http.Probes(lambda: said["alive"], lambda: said["ready"], metrics.text)
        runner, port = await http.serve(probes, 0, "127.0.0.1")
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

                async def get(path: str) -> tuple[int, str]:
                    async with session.get(path) as answer:
                        return answer.status, await answer.text()

                assert await get("/healthz") == (200, "ok")
                assert await get("/readyz") == (503, "waiting for the CRD")
                said |= {"alive": "stuck", "ready": ""}
                assert await get("/healthz") == (503, "stuck")
                assert (await get("/readyz"))[0] == 200
                text = (await get("/metrics"))[1]
                assert 'lamella_operator_models{state="Ready"} 1.0' in text
                wanted = 'api_requests_total{code="200",resource="pods",verb="list"} 1.0'
                assert wanted in text
                metrics.outcome(key, Outcome(GONE, None))
                text = (await get("/metrics"))[1]
                assert 'lamella_operator_models{state="Ready"} 0.0' in text
        finally:
            await runner.cleanup()

    asyncio.run(story())
