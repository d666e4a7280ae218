"""The pod that reads a model's config and file headers, and writes its profile as last words.

Knows no profile. It has what the workers have (nodes, tolerations, pull secrets, token, CA, proxy),
for what it can reach they must be able to.
"""

from __future__ import annotations

from typing import Any

from lamella_contract import names
from lamella_contract.model_uri import HF
from lamella_contract.spec import ShardedModelSpec
from lamella_operator.desired import configs, labels, object_names, podparts
from lamella_operator.desired import volumes as vol
from lamella_operator.settings import Settings
from lamella_operator.views import Manifest, ModelView

CONTAINER = "inspect"
DEADLINE_S = 300
CPU_REQUEST = "100m"


def inspector_pod(model: ModelView, settings: Settings, key: str, attempt: int) -> Manifest:
    """The ``attempt``-th pod for the profile ``key``; each has a name of its own."""
    assert model.spec is not None, "nothing is made from a manifest that does not parse"
    spec = model.spec
    own = labels.merged(spec.cluster.pod_labels, labels.labels(model, names.ROLE_INSPECTOR))
    name = object_names.inspector_name(model.name, key, attempt)
    annotations = labels.merged(spec.cluster.pod_annotations, podparts.disruption(spec))
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": labels.metadata(model, name, own, annotations),
        "spec": _pod_spec(spec, settings),
    }


def _pod_spec(spec: ShardedModelSpec, settings: Settings) -> dict[str, Any]:
    mounts = vol.Mounts()
    vol.common(mounts, spec, settings)
    vol.small_cache(mounts)
    found: dict[str, Any] = {
        **podparts.pod_basics(spec, settings),
        "restartPolicy": "Never",
        "activeDeadlineSeconds": DEADLINE_S,
        "terminationGracePeriodSeconds": 5,
        "securityContext": podparts.pod_security(),
        "tolerations": podparts.tolerations(spec.tolerations, spec.resources),
        "containers": [
            {
                "name": CONTAINER,
                **podparts.image(configs.gateway_image(spec, settings), spec, settings),
                "command": ["python", "-m", "lamella_checkpoint", "inspect", *_arguments(spec)],
                "env": [
                    *podparts.common_env(settings),
                    {"name": names.ENV_HOME, "value": configs.CACHE_DIR},
                ],
                "resources": podparts.with_memory({}, settings.inspector_memory_bytes, CPU_REQUEST),
                "securityContext": podparts.container_security(),
                "terminationMessagePath": configs.TERMINATION_LOG,
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": mounts.mounts,
            }
        ],
        "volumes": mounts.volumes,
    }
    if spec.node_selector:
        found["nodeSelector"] = dict(spec.node_selector)
    return found


def _arguments(spec: ShardedModelSpec) -> list[str]:
    uri = spec.model.parsed
    if uri.scheme == HF:
        found = ["--uri", f"hf://{uri.location}"]
        if uri.revision:
            found += ["--revision", uri.revision]
    else:
        found = ["--uri", f"file:{configs.model_path(spec)}"]
    if spec.pipeline.dtype:
        found += ["--dtype", spec.pipeline.dtype]
    if spec.pipeline.quantization != names.QUANTIZATIONS[0]:
        found += ["--quantization", spec.pipeline.quantization]
    if token := configs.hub_token_file(spec):
        found += ["--token-file", token]
    return [*found, "--message-file", configs.TERMINATION_LOG]
