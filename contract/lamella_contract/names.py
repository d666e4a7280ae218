"""Every string and number that crosses a border between Lamella's processes, files and objects.

Does not know what the things behind the names do. Each constant has one line of meaning; both
sides of a border import it, so that a rename is one edit and a typo is an import error.
"""

from __future__ import annotations

import hashlib
import re

# -- the manifest ------------------------------------------------------------------------------
GROUP = "lamella.dev"  # API group of the custom resource, and prefix of labels
API_VERSION = f"{GROUP}/v1alpha1"  # `apiVersion` of a manifest
KIND = "ShardedModel"  # `kind` of a manifest
DEFAULT_NAMESPACE = "default"  # where a manifest without a namespace lives
MAX_OBJECT_NAME = 63  # bytes in a Kubernetes label value and most object names
MAX_MODEL_NAME = 50  # bytes in a ShardedModel's name: its services' names add to it

# -- labels on everything that belongs to a model ----------------------------------------------
LABEL_MODEL = f"{GROUP}/model"  # the ShardedModel's name
LABEL_MODEL_UID = f"{GROUP}/model-uid"  # its UID, for a LIST that survives re-creation
LABEL_REPLICA = f"{GROUP}/replica"  # which pipeline of the model, a number
LABEL_STAGE = f"{GROUP}/stage"  # which stage of the pipeline, a number
LABEL_ROLE = f"{GROUP}/role"  # "stage", "gateway" or "inspector"
LABEL_REVISION = f"{GROUP}/revision"  # hash of the revision that an object was made from
LABEL_INSTANCE = "app.kubernetes.io/instance"  # the ShardedModel's name, for people and dashboards
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"  # MANAGER
MANAGER = "lamella-operator"  # field manager of every server-side apply

# -- annotations -------------------------------------------------------------------------------
ANNOTATION_RESUME = f"{GROUP}/resume"  # a new value starts a Degraded model's retries afresh
ANNOTATION_RESTARTS = f"{GROUP}/restarts"  # on a pod: how many predecessors failed in its place
ANNOTATION_GANG = f"{GROUP}/gang"  # on a pod: the system that places its pipeline as a gang
ANNOTATION_PREDECESSOR = f"{GROUP}/predecessor"  # on a pod: UID of the pod whose place it takes

# -- ports (on a cluster; a local pipeline takes free ones) ------------------------------------
PORT_HTTP = 8000  # the gateway's OpenAI endpoint
PORT_GATEWAY_LINK = 5700  # stage 0: ROUTER that gateways dial
PORT_CONTROL = 5701  # stage 0: ROUTER that the other stages dial
PORT_DATA = 5702  # every stage: PULL that its upstream neighbour dials
PORT_PROBES = 8081  # every stage: /healthz /readyz /metrics /status
PORT_LIVE = 8082  # every stage's parent process: /livez
PORT_OPERATOR = 8083  # the operator: /healthz /readyz /metrics
LOOPBACK = "127.0.0.1"  # where a local pipeline listens

# -- roles: names of the ends of a link, also under which keys are exchanged -------------------
ROLE_STAGE = "stage"
ROLE_GATEWAY = "gateway"
ROLE_INSPECTOR = "inspector"  # of a pod only: it has no link

# -- environment -------------------------------------------------------------------------------
ENV_HOME = "LAMELLA_HOME"  # where caches, demo models and run folders live
ENV_LOG_LEVEL = "LAMELLA_LOG_LEVEL"  # DEBUG, INFO (default), WARNING, ERROR
ENV_LOG_FORMAT = "LAMELLA_LOG_FORMAT"  # "text" (default) or "json"
ENV_HF_ENDPOINT = "HF_ENDPOINT"  # the hub's address; huggingface_hub's own name for it
ENV_HF_TOKEN = "HF_TOKEN"  # the hub's token; huggingface_hub's own name for it
ENV_HF_OFFLINE = "HF_HUB_OFFLINE"  # "1": never connect; huggingface_hub's own name for it
ENV_STAGE_CONFIG = "LAMELLA_STAGE_CONFIG"  # a stage's `StageConfig` itself, in a pod
ENV_GATEWAY_CONFIG = "LAMELLA_GATEWAY_CONFIG"  # a gateway's `GatewayConfig` itself, in a pod
ENV_POD_IP = "LAMELLA_POD_IP"  # the pod's address, which configurations refer to
ENV_POD_UID = "LAMELLA_POD_UID"  # the pod's UID: a process of a replaced pod is refused
ENV_POD_NAME = "LAMELLA_POD_NAME"  # the pod's name, which tells gateways of one model apart
ENV_REPLICA = "LAMELLA_REPLICA"  # which pipeline a pod belongs to, which configurations refer to

# -- files -------------------------------------------------------------------------------------
STAGE_CONFIG_FILE = "stage-{stage}.json"  # a stage's `StageConfig`
GATEWAY_CONFIG_FILE = "gateway.json"  # a gateway's `GatewayConfig`
KEY_FILE = "{role}.key.json"  # {"public", "secret"} in z85, mode 0600
STATUS_FILE = "status.json"  # what a local run's supervisor knows, for `lamella status`
MODEL_CONFIG_FILE = "config.json"  # a model folder's architecture
SAFETENSORS_FILE = "model.safetensors"  # weights in one file
SAFETENSORS_INDEX_FILE = "model.safetensors.index.json"  # weights in several files
GENERATION_CONFIG_FILE = "generation_config.json"  # default sampling and end-of-text ids
TERMINATION_LOG = "/dev/termination-log"  # where a pod's container leaves why it ended

# -- HTTP paths --------------------------------------------------------------------------------
PATH_HEALTH = "/healthz"  # the process runs
PATH_READY = "/readyz"  # the process can take work
PATH_SERVING = "/health"  # the gateway: a request would be served now
PATH_LIVE = "/livez"  # the parent of a stage runs
PATH_METRICS = "/metrics"  # Prometheus text
PATH_STATUS = "/status"  # JSON for people and for the command line

# -- choices that several packages check -------------------------------------------------------
DTYPES = ("bfloat16", "float16", "float32")  # dtypes that weights are served in
DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}  # bytes of one element
QUANTIZATIONS = ("none", "int8")  # what weights are stored as, if not as the dtype says
DEVICES = ("cuda", "cpu")  # kinds of device that a manifest may name
RUNNERS = ("auto", "fast", "packed", "sequential")  # ways to run a slice of layers
STAGE_STATES = ("loading", "ready", "failed")  # what a stage says of itself

_ROLE = re.compile(r"(stage|gateway)-(0|[1-9][0-9]{0,5})")


def stage_role(stage: int) -> str:
    """``stage-2``: the name of stage ``stage`` as the end of a link."""
    return f"{ROLE_STAGE}-{stage}"


def gateway_role(index: int) -> str:
    """``gateway-0``: the name of gateway ``index`` as the end of a link."""
    return f"{ROLE_GATEWAY}-{index}"


def parse_role(role: str) -> tuple[str, int] | None:
    """``("stage", 2)`` for ``stage-2``; None for what is no role."""
    match = _ROLE.fullmatch(role)
    return None if match is None else (match[1], int(match[2]))


def stage_title(stage: int, stages: int, name: str, note: str = "") -> str:
    """What ``ps`` shows for a stage: ``lamella: stage 1/3 qwen3-32b loading 40%``.

    ``stage`` counts from 0 and is shown so, because logs and metrics do.
    """
    return _title(f"stage {stage}/{stages}", name, note)


def gateway_title(name: str, note: str = "") -> str:
    """What ``ps`` shows for a gateway."""
    return _title("gateway", name, note)


def parent_title(name: str, note: str = "") -> str:
    """What ``ps`` shows for the process that forks the stages."""
    return _title("parent", name, note)


def _title(what: str, name: str, note: str) -> str:
    return " ".join(part for part in ("lamella:", what, name, note) if part)


def object_name(*parts: str, limit: int = MAX_OBJECT_NAME) -> str:
    """Join ``parts`` with dashes into a name of at most ``limit`` characters.

    A name that is too long is cut and ends in eight hex digits of its SHA-256, so that two long
    names that share a beginning stay two names. Parts are expected to be valid name parts.
    """
    name = "-".join(parts)
    if len(name) <= limit:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: limit - 9].rstrip('-.')}-{digest}"
