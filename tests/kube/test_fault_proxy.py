"""The proxy that makes trouble leaves nothing behind when it ends."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import yaml
from kube_fault_proxy import HANG, FaultProxy, Trouble
from kube_processes import wait_for

if TYPE_CHECKING:
    from kube_control_plane import ControlPlane


@pytest.mark.parametrize("trouble", [HANG, None], ids=["never answered", "under way"])
def test_requests_that_are_open_at_its_end_are_ended_on_both_sides(
    control_plane: ControlPlane, tmp_path: Path, trouble: Trouble
) -> None:
    """What is left open is found by the collector, which pytest turns into a failure."""
    token = yaml.safe_load(control_plane.kubeconfig.read_text())["users"][0]["user"]["token"]
    ended: list[type[Exception] | None] = []

    def watch(url: str) -> None:
        path = f"{url}/api/v1/namespaces?watch=true"
        try:
            with httpx.stream("GET", path, headers={"Authorization": f"Bearer {token}"}) as answer:
                for _ in answer.iter_bytes():
                    pass
            ended.append(None)
        except httpx.HTTPError as error:
            ended.append(type(error))

    with FaultProxy(control_plane.kubeconfig, tmp_path) as proxy:
        proxy.trouble = lambda method, path: trouble
        url = yaml.safe_load(proxy.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
        watchers = [threading.Thread(target=watch, args=(url,)) for _ in range(8)]
        for watcher in watchers:
            watcher.start()
        wait_for(lambda: len(proxy.asked) == len(watchers) or None, "all have asked")
    for watcher in watchers:
        watcher.join(20)
    assert len(ended) == len(watchers)
    gc.collect()
