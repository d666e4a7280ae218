"""The end, last of all: the chart goes and models serve on; a model goes and nothing is left."""

from __future__ import annotations

import time
from typing import Any

import pytest
from e2e_kube import wait_for
from e2e_models import gone
from e2e_report import Row

HUB_SPACE = "lamella-e2e-hub"
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.mark.slow
def test_a_namespace_that_was_deleted_is_gone(kube: Any) -> None:
    def left() -> list[str]:
        names = [space["metadata"]["name"] for space in kube.list("namespaces")]
        return [name for name in names if name.startswith("lamella-e2e-") and name != HUB_SPACE]

    wait_for("no namespace of these tests is left", lambda: not left(), 400)


def test_uninstall_leaves_models_serving_and_delete_leaves_nothing(
    main: Any, load: Any, table: Any, release: Any, kube: Any
) -> None:
    before, moment = main.uids() | main.uids("gateway"), time.monotonic()
    release.uninstall()
    wait_for("no operator runs", lambda: not release.pods(), 60)
    load.flow()
    assert main.uids() | main.uids("gateway") == before
    load.stop()
    told = load.since(moment)
    told.assert_unharmed()
    began = time.monotonic()
    main.delete()  # nobody is there to help: the garbage collector does it all
    wait_for("nothing is left", gone(kube, main.namespace, main.name), 120)
    seconds = round(time.monotonic() - began, 1)
    table.add(Row("the chart uninstalled, then the model deleted",
                  "it served on with the same pods; then nothing of it was left",
                  f"{len(told.errors)} of {told.answers}", told.longest_pause_s,
                  seconds))  # fmt: skip
