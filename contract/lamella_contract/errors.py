"""Every error that Lamella raises on purpose, as one tree.

Knows no tensor, socket or cluster. Each class says in one sentence what happened and what to do;
each message names the field or thing, what was got, and what was wanted. ``kind`` is the short
name under which an error crosses a process border (``TokenEvent.error_kind``, a log field, a
metric's label); `from_kind` makes the typed error again on the other side.

::

    LamellaError
    ├── InvalidSpec            a manifest does not say what it must: edit it
    ├── InvalidConfig          a process was started with a configuration that cannot work
    ├── PlanError              no plan exists for this model and these stages
    │   ├── DoesNotFit         too little memory: more stages, more memory, or less context
    │   └── ForbiddenCut       this family cannot be cut at that layer: move the cut
    ├── ModelError             the model's files cannot be used
    │   ├── ModelNotFound      no such folder, repository or revision
    │   ├── AuthRequired       the hub wants a token: give one
    │   ├── GatedModel         the token may not read this model: accept its licence
    │   ├── RateLimited        the hub asks to slow down: wait
    │   ├── HubUnreachable     no connection to the hub: check the network or go offline
    │   ├── DownloadStalled    no byte came for too long: try again, it resumes
    │   ├── CorruptModel       a file is truncated or contradicts itself: fetch it again
    │   ├── MissingTensor      a tensor that the family needs is in no file
    │   └── UnsupportedFamily  Lamella cannot run this architecture
    ├── WireError              bytes from a peer are not a frame of this version
    ├── RequestError           a client's request cannot be served as it is
    │   ├── InvalidRequest     a parameter is wrong: change the request
    │   ├── PromptTooLong      prompt and answer exceed the context: shorten them
    │   └── Overloaded         too many tokens wait already: come back after ``retry_after_s``
    ├── EngineError            a stage could not compute
    │   └── OutOfMemory        the device has no memory for this step
    └── PipelineError          the ring of stages cannot serve now
        ├── PipelineUnavailable  no ready pipeline: wait
        ├── StageLost          a stage died under a request: send it again
        └── StageReplaced      another process has this one's place: end
"""

from __future__ import annotations

from typing import ClassVar


class LamellaError(Exception):
    """Root of the tree; catch it where any failure of ours is handled alike."""

    kind: ClassVar[str] = "error"


class InvalidSpec(LamellaError):
    """A manifest's field is wrong; edit the manifest.

    ``path`` is the field as the user wrote it (``spec.pipeline.stages``), ``got`` the offending
    value, ``want`` what would have been accepted. ``message`` replaces the sentence made of them.
    """

    kind: ClassVar[str] = "invalid_spec"

    def __init__(self, path: str, got: object, want: str, message: str = "") -> None:
        super().__init__(message or f"{path}: got {shown(got)}, want {want}")
        self.path = path
        self.got = got
        self.want = want


class InvalidConfig(LamellaError):
    """A process's configuration cannot work; it is written by Lamella, so suspect versions."""

    kind: ClassVar[str] = "invalid_config"


class PlanError(LamellaError):
    """The layers cannot be dealt out to the stages as asked."""

    kind: ClassVar[str] = "plan"


class DoesNotFit(PlanError):
    """A stage's memory cannot hold its layers and the caches asked for."""

    kind: ClassVar[str] = "does_not_fit"


class ForbiddenCut(PlanError):
    """The model's family does not allow a stage to begin at that layer."""

    kind: ClassVar[str] = "forbidden_cut"


class ModelError(LamellaError):
    """The model's files cannot be used."""

    kind: ClassVar[str] = "model"


class ModelNotFound(ModelError):
    """No such folder, file, repository or revision."""

    kind: ClassVar[str] = "model_not_found"


class AuthRequired(ModelError):
    """The hub answered 401: give a token that may read the model."""

    kind: ClassVar[str] = "auth_required"


class GatedModel(ModelError):
    """The hub answered 403: the token's owner has not been let in to this model."""

    kind: ClassVar[str] = "gated_model"


class RateLimited(ModelError):
    """The hub answered 429 more often than we wait for; try again later."""

    kind: ClassVar[str] = "rate_limited"


class HubUnreachable(ModelError):
    """No connection to the hub could be made, or offline mode forbids one."""

    kind: ClassVar[str] = "hub_unreachable"


class DownloadStalled(ModelError):
    """A transfer brought no byte for too long; a new try resumes where it stopped."""

    kind: ClassVar[str] = "download_stalled"


class CorruptModel(ModelError):
    """A model file is truncated, overlaps itself or fails its checksum; fetch it again."""

    kind: ClassVar[str] = "corrupt_model"


class MissingTensor(ModelError):
    """A tensor that the architecture needs is in none of the model's files."""

    kind: ClassVar[str] = "missing_tensor"


class UnsupportedFamily(ModelError):
    """The model's architecture is one that Lamella cannot run or cannot cut."""

    kind: ClassVar[str] = "unsupported_family"


class WireError(LamellaError):
    """Bytes received are not a valid frame of this version; drop them and count."""

    kind: ClassVar[str] = "wire"


class RequestError(LamellaError):
    """A client's request cannot be served as it is; the server is well."""

    kind: ClassVar[str] = "request"


class InvalidRequest(RequestError):
    """A parameter of the request is wrong; change it and send again."""

    kind: ClassVar[str] = "invalid_request"


class PromptTooLong(RequestError):
    """Prompt and answer do not fit the served context; shorten one of them."""

    kind: ClassVar[str] = "prompt_too_long"


class Overloaded(RequestError):
    """Too many tokens are queued; send the same request again after ``retry_after_s`` seconds."""

    kind: ClassVar[str] = "overloaded"

    def __init__(
        self, message: str = "too many tokens are queued", *, retry_after_s: float = 1.0
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineError(LamellaError):
    """A stage could not compute a step; only that step's requests fail."""

    kind: ClassVar[str] = "engine"


class OutOfMemory(EngineError):
    """The device has no memory left for a step, even after it was halved."""

    kind: ClassVar[str] = "out_of_memory"


class PipelineError(LamellaError):
    """The ring of stages cannot serve now; the request itself was fine."""

    kind: ClassVar[str] = "pipeline"


class PipelineUnavailable(PipelineError):
    """No pipeline is ready; send the request again in a while."""

    kind: ClassVar[str] = "pipeline_unavailable"


class StageLost(PipelineError):
    """A stage died while a request was in flight; send the request again."""

    kind: ClassVar[str] = "stage_lost"


class StageReplaced(PipelineError):
    """A newer process has this stage's place in the ring; this one is to end, not to try again."""

    kind: ClassVar[str] = "stage_replaced"


def shown(value: object, limit: int = 80) -> str:
    """``repr`` of a value for a message, cut at ``limit`` characters; ``nothing`` for None."""
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def from_kind(kind: str, message: str, *, retry_after_s: float = 1.0) -> LamellaError:
    """The error that ``kind`` names, made again from what crossed a process border.

    An unknown kind (a newer peer) gives a plain `LamellaError`; nothing is raised.
    """
    if kind == Overloaded.kind:
        return Overloaded(message, retry_after_s=retry_after_s)
    found = _BY_KIND.get(kind)
    return LamellaError(message) if found is None else found(message)


def _by_kind(root: type[LamellaError]) -> dict[str, type[LamellaError]]:
    """Every class whose constructor takes the message alone, by its kind."""
    found = {root.kind: root}
    for child in root.__subclasses__():
        found.update(_by_kind(child))
    return {kind: cls for kind, cls in found.items() if cls not in (InvalidSpec, Overloaded)}


_BY_KIND = _by_kind(LamellaError)
