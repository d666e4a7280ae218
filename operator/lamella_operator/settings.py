"""The operator's settings: what the chart tells it. Frozen, parsed once, unknown names refused.

Does not know where they come from (`running.flags` reads flags and environment).
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """One field per thing that the chart's values can say.

    Defaults fit a cluster where the chart's defaults do.
    """

    worker_image: str
    """Image of worker pods, unless the manifest names one."""

    operator_image: str
    """Image of gateways and inspectors (this process's own), unless the manifest names one."""

    namespace: str = "lamella-system"
    """Where the operator runs, and keeps its Lease and its root Secret."""

    namespaces: tuple[str, ...] = ()
    """Namespaces whose models it looks after; () is all of them."""

    pull_policy: str = ""
    """imagePullPolicy where the manifest names none; "" leaves it to Kubernetes."""

    image_pull_secrets: tuple[str, ...] = ()
    """Added to the manifest's own; they must exist in the models' namespaces."""

    root_secret: str = "lamella-root"
    """Secret in `namespace` that all stages' keys are derived from."""

    hub_endpoint: str = ""
    """HF_ENDPOINT of inspectors, workers and gateways: a mirror of the hub."""

    proxy: tuple[tuple[str, str], ...] = ()
    """HTTP_PROXY, HTTPS_PROXY and NO_PROXY of the same."""

    ca_config_map: str = ""
    """ConfigMap (in the models' namespaces, key ca.crt) with the CA bundle of the same."""

    metrics_namespace: str = ""
    """Namespace whose pods may scrape /metrics; "" is none but the operator's own."""

    allow_host_path: bool = False
    """Whether spec.cache.hostPath is heeded; it lets a model's author write on nodes."""

    fs_group: int = 65532
    """Group that the file system of a cache claim is given to; 0 names none (OpenShift chooses)."""

    restrict_egress: bool = False
    """Whether data-plane pods may open connections only to each other, DNS and port 443."""

    priority_class: str = ""
    """priorityClassName of all pods of a model where the manifest names none."""

    cluster_domain: str = "cluster.local"
    """Suffix of service names."""

    resync_s: float = 60.0
    """Seconds between two LISTs that catch what no event announced."""

    worker_runtime_bytes: int = 1536 * MIB
    """Host memory of a worker beside its slice: Python, torch, its stacks, and logs."""

    staging_bytes: int = 2 * GIB
    """Host memory through which a GPU's slice is read, and its page cache's share."""

    device_runtime_bytes: int = GIB
    """Device memory that a stage keeps free for kernels, workspaces and activations."""

    gateway_memory_bytes: int = 1 * GIB
    """Memory of a gateway where the manifest names none: a tokenizer, a journal, streams."""

    inspector_memory_bytes: int = 1 * GIB
    """Memory of an inspector pod."""
