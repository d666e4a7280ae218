"""Claims that a model names: there, and mountable by as many nodes as its pods may lie on.

A pod of a claim that is mounted elsewhere stays in ContainerCreating for ever, with GPUs in its
hands; so such a manifest is refused before there is a pod. Where the manifest keeps all stages on
one node, or the cluster has only one, any claim will do. Knows access modes and no volume.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamella_contract.model_uri import PVC
from lamella_contract.spec import ShardedModelSpec
from lamella_contract.spec_cluster import CLAIM
from lamella_operator import reasons
from lamella_operator.actions import Note
from lamella_operator.views import ClaimView, Observed

AGAIN_S = 30.0
"""No event tells of a claim: a refused one is looked at again after this time."""
HOSTNAME = "kubernetes.io/hostname"
ONE_POD, ONE_NODE, MANY_READ, MANY_WRITE = (
    "ReadWriteOncePod",
    "ReadWriteOnce",
    "ReadOnlyMany",
    "ReadWriteMany",
)


REASONS = (reasons.VOLUME_NOT_BOUND, reasons.CLAIM_NOT_SHARED)


def missing(observed: Observed) -> Note | None:
    """That the model's own claim is not there, so that it cannot even be inspected."""
    spec = observed.model.spec
    assert spec is not None, "a manifest that does not parse names no claim"
    own = spec.model.parsed.location if spec.model.parsed.scheme == PVC else ""
    gone = [claim for claim in observed.claims if claim.name == own and not claim.exists]
    return _missing(observed, gone[0]) if gone else None


def refused(observed: Observed, stages: int) -> Note | None:
    """Why the manifest, which parses, cannot be acted on with the claims as they are.

    ``stages`` is how many a pipeline has.
    """
    spec = observed.model.spec
    assert spec is not None, "a manifest that does not parse names no claim"
    cache, uri = spec.cluster.cache, spec.model.parsed
    if spec.replicas == 0:
        return None
    # one pipeline more while a change rolls; a replacement may meet its predecessor, on that node
    pods = stages * (spec.replicas + spec.cluster.rollout.max_surge)
    one_node = observed.one_node or _kept_on_one_node(spec, stages)
    # gateways and the inspector of such a model go where spec.nodeSelector says
    gateways_too = observed.one_node or HOSTNAME in spec.node_selector
    for claim in observed.claims:
        if not claim.exists:
            return _missing(observed, claim)
        if uri.scheme == PVC and claim.name == uri.location:
            everyone = pods + spec.cluster.gateway.replicas
            note = _model(claim, everyone, one_node and gateways_too)
            if note is not None:
                return note
        if cache.kind == CLAIM and claim.name == cache.claim:
            note = _cache(claim, pods, one_node)
            if note is not None:
                return note
    return None


def _missing(observed: Observed, claim: ClaimView) -> Note:
    where = f"PersistentVolumeClaim {claim.name} in {observed.model.namespace}"
    return Note(reasons.VOLUME_NOT_BOUND, f"there is no {where}: make it")


def _cache(claim: ClaimView, pods: int, one_node: bool) -> Note | None:
    modes = set(claim.access_modes)
    if MANY_WRITE in modes or (ONE_NODE in modes and (pods <= 1 or one_node)):
        return None
    if ONE_POD in modes and pods <= 1:
        return None
    what = f"spec.cache.claimName: claim {claim.name} is {_named(claim)}"
    if modes == {MANY_READ}:
        return Note(reasons.CLAIM_NOT_SHARED, f"{what} and a cache is written: {_WAY_OUT}")
    held = "one pod" if ONE_POD in modes else "one node"
    text = f"{what}, so only {held} can mount it, and {pods} stages may lie on several nodes"
    return Note(reasons.CLAIM_NOT_SHARED, f"{text}: {_WAY_OUT}")


def _model(claim: ClaimView, pods: int, one_node: bool) -> Note | None:
    """The model's own claim: stages, gateways and the inspector read it, wherever they lie."""
    modes = set(claim.access_modes)
    if modes & {MANY_READ, MANY_WRITE} or (ONE_NODE in modes and one_node):
        return None
    return Note(
        reasons.CLAIM_NOT_SHARED,
        f"spec.model.uri: claim {claim.name} is {_named(claim)}, and {pods} stages and gateways "
        "may read it on several nodes: take a ReadOnlyMany or ReadWriteMany claim, or keep them "
        f"all on one node ({_ONE})",
    )


_ONE = f"spec.nodeSelector with {HOSTNAME}"
_WAY_OUT = f"take a ReadWriteMany claim or another cache, or keep all stages on one node ({_ONE})"


def _named(claim: ClaimView) -> str:
    return " and ".join(claim.access_modes) or "of no access mode"


def _kept_on_one_node(spec: ShardedModelSpec, stages: int) -> bool:
    """Whether every stage's nodeSelector names the same node."""
    each = spec.pipeline.stage_specs
    names = {_node(each[at].node_selector if at < len(each) else {}, spec) for at in range(stages)}
    return len(names) == 1 and "" not in names


def _node(own: Mapping[str, Any], spec: ShardedModelSpec) -> str:
    return str((own or spec.node_selector).get(HOSTNAME, ""))
