"""The PersistentVolumeClaims that a manifest names: are they there, and who may mount them.

One GET for each, and none for a model that names none. A role that may not read claims says
nothing of them.
"""

from __future__ import annotations

from lamella_contract.model_uri import PVC
from lamella_contract.spec_cluster import CLAIM as CACHE_CLAIM
from lamella_operator.reconciling.client import Client
from lamella_operator.reconciling.failures import Forbidden, NotFound
from lamella_operator.reconciling.kinds import CLAIM
from lamella_operator.reconciling.parse import mapping
from lamella_operator.views import ClaimView, ModelView


async def claims_of(client: Client, model: ModelView) -> tuple[ClaimView, ...]:
    """Those of ``model`` that may be read, in order. Raises `ApiError`."""
    spec = model.spec
    if spec is None:
        return ()
    names = [spec.model.parsed.location] if spec.model.parsed.scheme == PVC else []
    if spec.cluster.cache.kind == CACHE_CLAIM:
        names.append(spec.cluster.cache.claim)
    found = []
    for name in dict.fromkeys(names):
        try:
            document = await client.get(CLAIM, model.namespace, name)
        except NotFound:
            found.append(ClaimView(name, exists=False))
        except Forbidden:
            continue
        else:
            modes = mapping(document, "spec").get("accessModes") or ()
            found.append(ClaimView(name, True, tuple(str(one) for one in modes)))
    return tuple(found)
