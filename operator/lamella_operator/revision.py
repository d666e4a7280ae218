"""A revision: everything that pods of one version of a model are made from, stored as it was.

A replacement in a pipeline of an older revision is rendered from that revision, byte for byte, so
neither a newer spec nor a newer operator changes it. Pure; `deciding` makes one when the hash of
spec and plan is new, and it is stored as a ControllerRevision.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from lamella_contract import forms
from lamella_contract.errors import InvalidConfig
from lamella_contract.plan import Plan
from lamella_operator.views import Manifest

VERSION = 1
"""Of the stored document; an operator reads this version and the one before."""

HASH_DIGITS = 10


@dataclass(frozen=True, slots=True)
class Revision:
    """``pods`` holds one pod manifest per stage, without name, replica and predecessor.

    ``gateway`` is the Deployment of the gateways, ``commit`` the model's, ``link_hash`` (hex) is
    equal for revisions whose gateways can serve each other's pipelines.
    """

    hash: str
    commit: str
    link_hash: str
    plan: Plan
    pods: tuple[Manifest, ...]
    gateway: Manifest
    drain_s: int
    key_generation: int = 1

    @property
    def stages(self) -> int:
        return len(self.pods)

    def to_document(self) -> dict[str, Any]:
        """What is stored as the ControllerRevision's ``data``."""
        return {
            "version": VERSION,
            "hash": self.hash,
            "commit": self.commit,
            "linkHash": self.link_hash,
            "plan": forms.to_plain(self.plan),
            "pods": [dict(pod) for pod in self.pods],
            "gateway": dict(self.gateway),
            "drainSeconds": self.drain_s,
            "keyGeneration": self.key_generation,
        }

    @classmethod
    def from_document(cls, document: Manifest) -> Revision:
        """Raises `InvalidConfig` for what another version of the operator must have written."""
        version = document.get("version")
        if version != VERSION:
            raise InvalidConfig(f"revision: got version {version!r}, want {VERSION}")
        try:
            return cls(
                hash=document["hash"],
                commit=document["commit"],
                link_hash=document["linkHash"],
                plan=forms.from_plain(Plan, document["plan"], InvalidConfig, "plan"),
                pods=tuple(document["pods"]),
                gateway=document["gateway"],
                drain_s=document["drainSeconds"],
                key_generation=document["keyGeneration"],
            )
        except KeyError as error:
            raise InvalidConfig(f"revision: field {error} is missing") from error


def revision_hash(*parts: object) -> str:
    """Hash of what a revision depends on: plain JSON values, in any key order."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]
