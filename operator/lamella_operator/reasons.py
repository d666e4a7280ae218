"""Every reason that a status, a condition or an Event may give, one line of meaning each.

Reasons are what people grep for and what dashboards group by, so the list is closed: `deciding`
and `reconciling` pick one, `status` prints it. Knows nothing else.
"""

from __future__ import annotations

# -- all is well, or on its way ----------------------------------------------------------------
READY = "Ready"  # serves
RESOLVING = "Resolving"  # an inspector pod reads the model's config and headers
RESOLVED = "Resolved"  # the model's profile is known
ACCEPTED = "Accepted"  # the manifest parses and can be acted on
PLANNED = "Planned"  # layers are dealt out to stages
STARTING = "Starting"  # pods are being made, or were just made
SCHEDULED = "Scheduled"  # every stage has a node
CONTAINER_CREATING = "ContainerCreating"  # placed; image, volumes or network are being set up
DOWNLOADING = "Downloading"  # weights come from a hub or a registry
LOADING_WEIGHTS = "LoadingWeights"  # a slice is being read into memory
WEIGHTS_LOADED = "WeightsLoaded"  # every stage holds its slice
CONNECTING = "Connecting"  # slices are there, the ring is being closed
CONNECTED = "Connected"  # the ring of a pipeline is closed
ROLLING_OUT = "RollingOut"  # pipelines of an older revision are being replaced
ROLLED_OUT = "RolledOut"  # every pipeline is of the current revision
SCALING = "Scaling"  # there are more or fewer pipelines than wanted
SCALED_TO_ZERO = "ScaledToZero"  # replicas is 0; profile and plan are kept
DRAINING = "Draining"  # asked to end, finishing requests
RECOVERING = "Recovering"  # a lost stage is being replaced
PAUSED = "Paused"  # spec.paused is true: nothing is created, rolled or deleted
DELETING = "Deleting"  # the ShardedModel is being deleted
YIELDED_CAPACITY = "YieldedCapacity"  # a half-placed pipeline gave its nodes back for a while
AS_EXPECTED = "AsExpected"  # nothing of what the condition warns of is so
GATEWAY_NOT_READY = "GatewayNotReady"  # no gateway takes requests yet

# -- the manifest, or the cluster's copy of its schema -----------------------------------------
INVALID_SPEC = "InvalidSpec"  # the manifest does not parse; the message says where
CRD_TOO_OLD = "CRDTooOld"  # the cluster's CRD lacks fields that this operator needs
UNKNOWN_REVISION = "UnknownRevision"  # a stored revision is of another version of the operator

# -- the model ---------------------------------------------------------------------------------
MODEL_NOT_FOUND = "ModelNotFound"  # nothing at that address, revision or path
AUTH_REQUIRED = "AuthRequired"  # the hub wants a token, or does not know this one (401)
GATED_MODEL = "GatedModel"  # the token may not read this model (403)
RATE_LIMITED = "RateLimited"  # the hub said 429
HUB_UNREACHABLE = "HubUnreachable"  # no connection, a timeout, or 5xx
UNSUPPORTED_FAMILY = "UnsupportedFamily"  # no stage can run this architecture
CORRUPT_MODEL = "CorruptModel"  # files are missing, cut off or contradict each other
INSPECTION_FAILED = "InspectionFailed"  # the inspector ended without saying why
DIGEST_MISMATCH = "DigestMismatch"  # a downloaded file is not what the hub announced

# -- the plan ----------------------------------------------------------------------------------
DOES_NOT_FIT = "DoesNotFit"  # the model or its context needs more memory than the stages have
FORBIDDEN_CUT = "ForbiddenCut"  # the split or the family cuts where it must not

# -- placing -----------------------------------------------------------------------------------
INSUFFICIENT_GPU = "InsufficientGPU"  # no node has enough free GPUs
INSUFFICIENT_MEMORY = "InsufficientMemory"  # no node has enough free memory
INSUFFICIENT_CPU = "InsufficientCPU"  # no node has enough free CPU
INSUFFICIENT_STORAGE = "InsufficientStorage"  # no node has enough ephemeral storage
UNSCHEDULABLE = "Unschedulable"  # taints, selectors, affinity or volumes rule every node out
QUEUED = "Queued"  # its gang waits for room in its queue, or for nodes for all of it
GANG_SYSTEM_MISSING = "GangSystemMissing"  # spec.scheduling.gang names what is not installed
VOLUME_NOT_BOUND = "VolumeNotBound"  # a claim is missing or waits for its volume
CLAIM_NOT_SHARED = "ClaimNotShared"  # fewer nodes can mount a claim than pods need it on
QUOTA_EXCEEDED = "QuotaExceeded"  # a ResourceQuota of the namespace refused a pod
LIMIT_RANGE = "LimitRange"  # a LimitRange of the namespace refused a pod
ADMISSION_REFUSED = "AdmissionRefused"  # a webhook or Pod Security refused a pod
FORBIDDEN = "Forbidden"  # the operator's role does not allow it
NAME_CONFLICT = "NameConflict"  # an object of that name belongs to somebody else
NAMESPACE_TERMINATING = "NamespaceTerminating"  # the namespace is being deleted

# -- starting a container ----------------------------------------------------------------------
IMAGE_PULL = "ImagePull"  # the image cannot be pulled
SECRET_MISSING = "SecretMissing"  # a Secret or ConfigMap that the pod needs does not exist
CONTAINER_CONFIG = "ContainerConfig"  # the kubelet cannot make the container as asked
CONTAINER_START = "ContainerStart"  # the runtime could not start the container
VOLUME_MOUNT = "VolumeMount"  # a volume cannot be mounted

# -- losing a stage ----------------------------------------------------------------------------
OUT_OF_MEMORY = "OutOfMemory"  # the kernel killed it at its memory limit
DISK_FULL = "DiskFull"  # the cache of weights has no room left
OUT_OF_DEVICE_MEMORY = "OutOfDeviceMemory"  # the GPU's memory did not suffice
CRASH_LOOP = "CrashLoop"  # its container ended twice within ten minutes
STAGE_FAILED = "StageFailed"  # it ended by itself, with an error
STAGE_CONFIG = "StageConfig"  # it ended at once because its configuration cannot work
STAGE_LOST = "StageLost"  # its pod was deleted, or is not there
NODE_LOST = "NodeLost"  # its node is gone or has not reported for too long
EVICTED = "Evicted"  # the node's kubelet or the scheduler evicted it
UNEXPECTED_ADMISSION = "UnexpectedAdmissionError"  # the kubelet refused it after scheduling
PEER_UNREACHABLE = "PeerUnreachable"  # its ring has not heard of it for replaceAfterSeconds
STUCK_TERMINATING = "StuckTerminating"  # it should have ended and has not
RETRIES_EXHAUSTED = "RetriesExhausted"  # recovery.maxRestarts replacements failed in a row

ALL: frozenset[str] = frozenset(
    value for name, value in vars().items() if name.isupper() and isinstance(value, str)
)
"""Every reason above; a test holds the modules that name reasons against it."""
