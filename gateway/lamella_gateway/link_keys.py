"""The CURVE keys of a gateway's links, from its key file and its configuration."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lamella_contract.config import GatewayConfig
from lamella_contract.errors import InvalidConfig
from lamella_contract.names import stage_role


@dataclass(frozen=True, slots=True)
class LinkKeys:
    """CURVE keys in z85: this gateway's pair and stage 0's public key."""

    public: bytes
    secret: bytes
    server: bytes


def load_keys(config: GatewayConfig) -> LinkKeys:
    """This gateway's CURVE pair from its file, and stage 0's public key; `InvalidConfig`."""
    try:
        document = json.loads(Path(config.key_file).read_text(encoding="utf-8"))
        public, secret = document["public"].encode("ascii"), document["secret"].encode("ascii")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as reason:
        raise InvalidConfig(
            f"key_file: got {config.key_file!r}, want a readable JSON file with 'public' and "
            f"'secret' ({reason})"
        ) from reason
    keys = LinkKeys(public, secret, config.peer_key(stage_role(0)).encode("ascii"))
    if {len(keys.public), len(keys.secret), len(keys.server)} != {40}:
        raise InvalidConfig(f"key_file: {config.key_file!r} or peer_keys: want z85 keys of 40")
    return keys
