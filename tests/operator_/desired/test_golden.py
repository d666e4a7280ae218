"""Every object of every case, whole: reviewers read the difference as documentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from lamella_contract import names
from lamella_contract.config import GatewayConfig, StageConfig

FIELDS = {
    "status.podIP": "10.1.2.3",
    "metadata.name": "some-pod",
    "metadata.uid": "some-uid",
    f"metadata.labels['{names.LABEL_REPLICA}']": "7",
}


def _text(objects: list[Any]) -> str:
    shown = []
    for each in objects:
        if each["kind"] == "ControllerRevision":  # its data are the pods above, as templates
            stored = {**each["data"], "pods": f"{len(each['data']['pods'])} as above"}
            each = {**each, "data": stored | {"gateway": "as above"}}
        shown.append(each)
    return yaml.dump_all(shown, width=10_000, Dumper=_Plain, sort_keys=False)


class _Plain(yaml.SafeDumper):
    """No anchors: every object is written out."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def test_objects_are_as_they_were(
    case: tuple[str, Any], objects: Callable[[Any], list[Any]], golden: Callable[[str, str], None]
) -> None:
    name, made = case
    golden(f"model-{name}.yaml", _text(objects(made)))


def test_configurations_are_what_the_processes_read(
    case: tuple[str, Any],
    objects: Callable[[Any], list[Any]],
    expanded: Callable[..., dict[str, str]],
) -> None:
    _, made = case
    stages, gateways = [], []
    for each in objects(made):
        spec = each.get("spec", {}).get("template", each).get("spec", {})
        for container in spec.get("containers", []):
            env = expanded(container, **FIELDS)
            if names.ENV_STAGE_CONFIG in env:
                stages.append(StageConfig.from_json(env[names.ENV_STAGE_CONFIG]))
            if names.ENV_GATEWAY_CONFIG in env:
                gateways.append(GatewayConfig.from_json(env[names.ENV_GATEWAY_CONFIG]))
    assert [config.stage for config in stages] == list(range(len(made.plan.stages)))
    (gateway,) = gateways
    for config in stages:
        assert config.pipeline.replica == 7
        assert config.pipeline == stages[0].pipeline
        assert config.pipeline.model_hash().hex() == gateway.model_hash == made.revision.link_hash
        assert config.data_bind == "tcp://10.1.2.3:5702"
    assert stages[0].control_address == "tcp://10.1.2.3:5701"
    for config in stages[1:]:
        assert "-7.ai.svc.cluster.local.:5701" in config.control_address
    assert gateway.instance == "some-pod"
    assert gateway.served_name == made.model.spec.model.served_name


@pytest.mark.parametrize("kind", ["names", "labels"])
def test_everything_has_a_valid_name_and_an_owner(
    case: tuple[str, Any], objects: Callable[[Any], list[Any]], kind: str
) -> None:
    _, made = case
    seen = set()
    for each in objects(made):
        meta = each["metadata"]
        if kind == "labels":
            assert meta["labels"][names.LABEL_MODEL_UID] == made.model.uid
            assert all(len(value) <= 63 for value in meta["labels"].values())
            (owner,) = meta["ownerReferences"]
            assert owner["controller"] is True
            continue
        assert len(meta["name"]) <= 63
        assert (each["kind"], meta["name"]) not in seen
        seen.add((each["kind"], meta["name"]))
