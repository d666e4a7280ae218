"""Shared by the operator's tests: a manifest, a profile and what is made of them, as values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from lamella_contract import names, spec
from lamella_contract.plan import Plan
from lamella_contract.profile import LayerProfile, ModelProfile
from lamella_operator.desired.planning import planned
from lamella_operator.desired.revisions import make_revision
from lamella_operator.revision import Revision
from lamella_operator.settings import Settings
from lamella_operator.views import ModelView

MIB = 1 << 20
COMMIT = "0123456789abcdef0123456789abcdef01234567"
UID = "5b1f7a52-3c1e-4c5e-9f7e-0a9d4b1c2d3e"
SETTINGS = Settings(worker_image="registry.test/worker:1", operator_image="registry.test/op:1")


def public_key(role: str, generation: int) -> str:
    """Forty characters that name the role."""
    text = f"public-key-of-{role}" + (f"-{generation}" if generation > 1 else "")
    return text.ljust(40, ".")


def make_model(
    body: Mapping[str, Any], *, name: str = "qwen3", uid: str = UID, **more: Any
) -> ModelView:
    """A ShardedModel in namespace `ai` as the operator sees it; ``body`` is its spec."""
    manifest = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name, "namespace": "ai"},
        "spec": body,
    }
    parsed = spec.parse(manifest).spec
    return ModelView(name=name, namespace="ai", uid=uid, generation=3, spec=parsed, **more)


def make_profile(
    *, layers: int = 8, layer_mib: int = 512, commit: str = COMMIT, uri: str = "hf://Qwen/Qwen3"
) -> ModelProfile:
    """A model of equal layers with a tied head."""
    layer = LayerProfile(layer_mib * MIB, 4096, 0, "full_attention")
    return ModelProfile(
        uri=uri,
        commit=commit,
        family="qwen3",
        dtype="bfloat16",
        hidden_size=1024,
        vocab_size=151936,
        max_model_len=32768,
        layers=(layer,) * layers,
        embedding_bytes=297 * MIB,
        head_bytes=297 * MIB,
        final_bytes=2048,
        tied=True,
        boundary_bytes_per_token=2048,
        allowed_cuts=tuple(range(1, layers)),
        eos_token_ids=(151645, 151643),
    )


@dataclass(frozen=True)
class Made:
    """One model and all that follows from its manifest."""

    model: ModelView
    profile: ModelProfile
    settings: Settings
    plan: Plan
    revision: Revision


Make = Callable[..., Made]


@pytest.fixture(scope="session")
def make() -> Make:
    """``make(body, settings=..., profile=..., name=..., annotations=...)``."""

    def made(
        body: Mapping[str, Any],
        *,
        settings: Settings = SETTINGS,
        profile: ModelProfile | None = None,
        **view: Any,
    ) -> Made:
        model = make_model(body, **view)
        profile = profile or make_profile()
        assert model.spec is not None
        plan = planned(profile, model.spec, settings)
        revision = make_revision(model, profile, plan, settings, public_key)
        return Made(model, profile, settings, plan, revision)

    return made
