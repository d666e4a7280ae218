"""Which revision is wanted, which are stored, and which may go.

The hash of manifest and commit names a revision; one that is stored is used as it was stored,
whatever this version of the operator would make of it now. Going back to an older manifest finds
the older revision again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lamella_contract import names
from lamella_contract.errors import DoesNotFit, ForbiddenCut, InvalidSpec, LamellaError, PlanError
from lamella_contract.plan import Plan
from lamella_contract.profile import ModelProfile
from lamella_operator import reasons
from lamella_operator.actions import Action, Create, Delete, Note
from lamella_operator.desired import planning
from lamella_operator.desired.revisions import hash_of, make_revision, revision_object
from lamella_operator.revision import Revision
from lamella_operator.settings import Settings
from lamella_operator.views import Manifest, Observed


@dataclass(frozen=True, slots=True)
class Target:
    """The revision that the manifest asks for, or why there is none: ``unplanned`` needs another
    plan, ``refused`` another manifest. ``actions`` store it where it is new."""

    revision: Revision | None = None
    plan: Plan | None = None
    unplanned: Note | None = None
    refused: Note | None = None
    actions: tuple[Action, ...] = ()


def stored(observed: Observed) -> dict[str, Revision]:
    """Every stored revision that this version can read, by hash; the newest last."""
    found = {}
    for view in sorted(observed.revisions, key=lambda one: one.number):
        try:
            found[view.hash] = Revision.from_document(view.document)
        except LamellaError:
            continue
    return found


def target(
    observed: Observed,
    profile: ModelProfile,
    known: Mapping[str, Revision],
    settings: Settings,
) -> Target:
    """The revision of the model's manifest and this profile."""
    model = observed.model
    assert model.spec is not None, "a manifest that does not parse asks for nothing"
    name = hash_of(model.spec, profile.commit)
    revision = known.get(name)
    if revision is not None:
        return Target(revision, revision.plan)
    try:
        plan = planning.planned(profile, model.spec, settings)
    except PlanError as error:
        return Target(unplanned=Note(_reason(error), str(error)))
    try:
        made = make_revision(model, profile, plan, settings, observed.public_key)
    except InvalidSpec as error:
        return Target(plan=plan, refused=Note(reasons.INVALID_SPEC, str(error)))
    number = max((view.number for view in observed.revisions), default=0) + 1
    unreadable = [view for view in observed.revisions if view.hash == name]
    actions: list[Action] = [
        _delete(view.name, view.uid, "this version cannot read it") for view in unreadable
    ]
    actions.append(Create(revision_object(model, made, number)))
    return Target(made, plan, actions=tuple(actions))


def matching(observed: Observed, known: Mapping[str, Revision]) -> Revision | None:
    """The newest stored revision that this very manifest once led to, at whichever commit.

    It stands in while the profile is read again: going back to an older manifest, or a lost
    status, needs no hub.
    """
    spec = observed.model.spec
    assert spec is not None, "a manifest that does not parse leads to nothing"
    newest = reversed(list(known.values()))
    return next((one for one in newest if hash_of(spec, one.commit) == one.hash), None)


def in_use(observed: Observed) -> set[str]:
    """Hashes of revisions that a pod or the gateways' Deployment is made from."""
    used = {pod.revision for pod in (*observed.pods, *observed.gateway_pods)}
    for live in observed.objects:
        used.add(revision_label(live.manifest))
    return used - {""}


def newest_in_use(observed: Observed, known: Mapping[str, Revision]) -> Revision | None:
    """What pods are made from while the manifest cannot be read."""
    used = in_use(observed)
    return next((known[name] for name in reversed(list(known)) if name in used), None)


def garbage(observed: Observed, keep: Iterable[str]) -> list[Action]:
    """Deletes of revisions beyond the manifest's limit, none of them used or in ``keep``."""
    spec = observed.model.spec
    assert spec is not None, "nothing is cleared while the manifest cannot be read"
    kept = in_use(observed) | set(keep)
    unused = [view for view in observed.revisions if view.hash not in kept]
    unused.sort(key=lambda view: (view.number, view.name), reverse=True)
    return [
        _delete(view.name, view.uid, "revisionHistoryLimit")
        for view in unused[spec.cluster.revision_history_limit :]
    ]


def revision_label(manifest: Manifest) -> str:
    """The revision that an object's labels name."""
    labels = (manifest.get("metadata") or {}).get("labels") or {}
    return str(labels.get(names.LABEL_REVISION, ""))


def _delete(name: str, uid: str, why: str) -> Delete:
    return Delete("ControllerRevision", name, uid, why=why)


def _reason(error: PlanError) -> str:
    if isinstance(error, ForbiddenCut):
        return reasons.FORBIDDEN_CUT
    return reasons.DOES_NOT_FIT if isinstance(error, DoesNotFit) else reasons.INVALID_SPEC
