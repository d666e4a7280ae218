"""What each process is told when it starts: one JSON document per process.

Does not know who writes the documents (a local supervisor or an operator) nor what the process
does with them. `PipelineConfig` is the same on every stage, and its hash rides in each frame, so
that two processes that were told different things refuse each other.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from lamella_contract import forms, names
from lamella_contract.errors import InvalidConfig, shown


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """What all stages of one pipeline agree on.

    ``model_path`` is a local folder once the model is resolved, "" when stages read their byte
    ranges from ``model_uri``. ``splits`` holds the first layer of each stage. Every stage has
    ``num_blocks`` blocks of ``block_size`` tokens for the caches of at most ``max_sequences``
    sequences of at most ``max_model_len`` tokens; a step holds at most ``max_step_tokens`` tokens
    and at most ``max_queued_tokens`` wait. On a cluster ``model_uid`` and ``replica`` say which
    pipeline it is: a stage that reached another one by an address of yesterday is refused there.
    """

    name: str
    model_uri: str
    model_path: str
    commit: str
    num_layers: int
    splits: tuple[int, ...]
    dtype: str
    block_size: int
    num_blocks: int
    max_sequences: int
    max_model_len: int
    max_step_tokens: int
    max_queued_tokens: int
    eos_token_ids: tuple[int, ...]
    vocab_size: int
    runner: str = "auto"
    quantization: str = "none"
    model_uid: str = ""
    replica: int = 0

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, names.DTYPES)
        _one_of("runner", self.runner, names.RUNNERS)
        _one_of("quantization", self.quantization, names.QUANTIZATIONS)
        if self.quantization != names.QUANTIZATIONS[0] and self.runner not in ("auto", "fast"):
            raise InvalidConfig(
                f"quantization: got {self.quantization!r} with runner {self.runner!r}, want runner "
                "auto or fast"
            )
        _positive(
            self,
            "num_layers",
            "block_size",
            "num_blocks",
            "max_sequences",
            "max_model_len",
            "max_step_tokens",
            "max_queued_tokens",
            "vocab_size",
        )
        steps = zip(self.splits, (*self.splits[1:], self.num_layers), strict=True)
        if not self.splits or self.splits[0] != 0 or any(a >= b for a, b in steps):
            raise InvalidConfig(
                f"splits: got {list(self.splits)}, want first layers that rise from 0 and stay "
                f"below num_layers={self.num_layers}"
            )

    @property
    def num_stages(self) -> int:
        return len(self.splits)

    def layer_range(self, stage: int) -> tuple[int, int]:
        """Half-open range of the layers of ``stage``."""
        ends = (*self.splits[1:], self.num_layers)
        return self.splits[stage], ends[stage]

    def config_hash(self) -> bytes:
        """First 16 bytes of the SHA-256 of the canonical JSON; equal means compatible."""
        return hashlib.sha256(self.to_json().encode()).digest()[:16]

    def model_hash(self) -> bytes:
        """16 bytes that are equal for pipelines which a request may move between.

        They serve the same model to the same limits; how it is cut, stored and placed may differ.
        """
        same = (self.model_uid, self.commit or self.model_uri, self.vocab_size)
        limits = (self.max_model_len, *self.eos_token_ids)
        # Other weights give other answers; without quantization the hash is what it always was.
        stored = () if self.quantization == names.QUANTIZATIONS[0] else (self.quantization,)
        return hashlib.sha256(repr((same, limits, *stored)).encode()).digest()[:16]

    def to_json(self) -> str:
        return forms.to_json(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> PipelineConfig:
        """Raises `InvalidConfig`."""
        return forms.from_json(cls, text, InvalidConfig)


@dataclass(frozen=True, slots=True)
class StageConfig:
    """What one stage is told.

    Addresses are ZeroMQ endpoints (``tcp://127.0.0.1:5701``). Stage 0 binds ``control_address``
    and ``gateway_address``; other stages dial the first and have "" for the second. ``data_bind``
    may end in ``:*``; the port taken is reported in `Join`. ``http_address`` (``127.0.0.1:0``)
    serves probes and metrics. ``key_file`` holds this stage's CURVE pair, ``peer_keys`` each
    allowed peer's role and public key (z85). ``cpu`` pins the stage to one core. ``in_turn``: the
    stages share one machine's cores, so one step is under way at a time, and each stage computes it
    with all of them. A peer silent for ``suspect_after_s`` makes the pipeline unready, for
    ``replace_after_s`` is given up.
    ``parent_pid`` 0: no parent to die with.

    The host of ``control_address`` may be a name, which is looked up anew whenever stage 0 is not
    heard. Asked to end, stage 0 takes no new request and gives those it has ``drain_s`` seconds.
    The parent answers /livez at ``live_address`` ("" nowhere), and writes why a stage ended for
    good to ``termination_log`` ("" nowhere).
    """

    pipeline: PipelineConfig
    stage: int
    device: str
    threads: int
    cpu: int | None
    control_address: str
    gateway_address: str
    data_bind: str
    http_address: str
    key_file: str
    peer_keys: tuple[tuple[str, str], ...]
    cache_dir: str
    hub_token_file: str
    suspect_after_s: float = 1.0
    replace_after_s: float = 10.0
    parent_pid: int = 0
    drain_s: float = 0.0
    live_address: str = ""
    termination_log: str = ""
    in_turn: bool = False

    def __post_init__(self) -> None:
        stages = self.pipeline.num_stages
        if not 0 <= self.stage < stages:
            raise InvalidConfig(f"stage: got {self.stage}, want 0 to {stages - 1}")
        if self.pipeline.quantization != names.QUANTIZATIONS[0] and self.device != "cpu":
            raise InvalidConfig(
                f"quantization: got {self.pipeline.quantization!r} on {self.device!r}, want device "
                "cpu or quantization none"
            )
        if self.cpu is not None and self.cpu < 0:
            raise InvalidConfig(f"cpu: got {self.cpu}, want a core's number or null")
        _positive(self, "threads", "suspect_after_s", "replace_after_s")
        _given(self, "device", "control_address", "data_bind", "http_address", "key_file")
        _roles(self.peer_keys)

    @property
    def role(self) -> str:
        return names.stage_role(self.stage)

    @property
    def is_first(self) -> bool:
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        return self.stage == self.pipeline.num_stages - 1

    def peer_key(self, role: str) -> str:
        """Public key of ``role``; `InvalidConfig` if this stage was told none."""
        return _peer_key(self.peer_keys, role)

    def to_json(self) -> str:
        return forms.to_json(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> StageConfig:
        """Raises `InvalidConfig`."""
        return forms.from_json(cls, text, InvalidConfig)


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """What one gateway is told.

    ``name`` is its role (``gateway-0``), under which its key is known; ``instance`` tells gateways
    of one role apart. ``replicas`` are the gateway addresses of the pipelines' stage 0; or
    ``discover`` is a ``host:port`` whose host's addresses are, or ``file:<path>`` of a file that
    lists them (one a line, written whole or not at all), looked up again and again.
    ``model_hash`` is `PipelineConfig.model_hash` in hex. The tokenizer is at ``tokenizer_path``,
    or "" there and it is read from ``model_uri`` (with the token in ``hub_token_file``) into
    ``cache_dir``. ``api_keys_file`` "" lets everyone in. A request that has no token for
    ``request_deadline_s`` seconds ends with an error. Asked to end, streams may go on for
    ``drain_s`` seconds.
    """

    name: str
    served_name: str
    http_host: str
    http_port: int
    replicas: tuple[str, ...]
    tokenizer_path: str
    key_file: str
    peer_keys: tuple[tuple[str, str], ...]
    model_hash: str
    max_model_len: int
    max_queued_tokens: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    api_keys_file: str = ""
    request_deadline_s: float = 600.0
    max_body_bytes: int = 8 * 1024 * 1024
    instance: str = ""
    discover: str = ""
    model_uri: str = ""
    cache_dir: str = ""
    hub_token_file: str = ""
    drain_s: float = 1.2

    def __post_init__(self) -> None:
        _given(self, "name", "served_name", "http_host", "key_file")
        if not 0 <= self.http_port <= 65535:
            raise InvalidConfig(f"http_port: got {self.http_port}, want 0 to 65535")
        if bool(self.replicas) == bool(self.discover):
            raise InvalidConfig(
                f"replicas: got {len(self.replicas)} addresses and discover={self.discover!r}, "
                "want the address of at least one stage 0, or a name to look them up by"
            )
        if bool(self.tokenizer_path) == bool(self.model_uri):
            raise InvalidConfig(
                f"tokenizer_path: got {self.tokenizer_path!r} and model_uri={self.model_uri!r}, "
                "want one of them"
            )
        try:
            digest = bytes.fromhex(self.model_hash)
        except ValueError:
            digest = b""
        if len(digest) != 16:
            raise InvalidConfig(f"model_hash: got {self.model_hash!r}, want 32 hex digits")
        _positive(
            self,
            "max_model_len",
            "max_queued_tokens",
            "vocab_size",
            "request_deadline_s",
            "max_body_bytes",
        )
        _roles(self.peer_keys)

    def model_hash_bytes(self) -> bytes:
        """The 16 bytes that ride in each envelope between gateway and stage 0."""
        return bytes.fromhex(self.model_hash)

    def peer_key(self, role: str) -> str:
        """Public key of ``role``; `InvalidConfig` if this gateway was told none."""
        return _peer_key(self.peer_keys, role)

    def to_json(self) -> str:
        return forms.to_json(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> GatewayConfig:
        """Raises `InvalidConfig`."""
        return forms.from_json(cls, text, InvalidConfig)


def _positive(config: Any, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        if not value > 0:
            raise InvalidConfig(f"{field}: got {value}, want more than 0")


def _given(config: Any, *fields: str) -> None:
    for field in fields:
        if not getattr(config, field):
            raise InvalidConfig(f"{field}: got an empty string, want a value")


def _one_of(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InvalidConfig(f"{field}: got {shown(value)}, want one of {', '.join(known)}")


def _roles(peer_keys: tuple[tuple[str, str], ...]) -> None:
    for role, _ in peer_keys:
        if names.parse_role(role) is None:
            raise InvalidConfig(f"peer_keys: got role {role!r}, want stage-<k> or gateway-<k>")
    if len(dict(peer_keys)) != len(peer_keys):
        raise InvalidConfig("peer_keys: a role stands twice")


def _peer_key(peer_keys: tuple[tuple[str, str], ...], role: str) -> str:
    for known, key in peer_keys:
        if known == role:
            return key
    raise InvalidConfig(f"peer_keys: no key of {role!r}; known: {[r for r, _ in peer_keys]}")
