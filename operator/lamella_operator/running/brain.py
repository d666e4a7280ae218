"""The pure parts, as the reconciler calls them: the one place where they are plugged in."""

from __future__ import annotations

from lamella_operator.deciding.decide import decide, wants_rivals
from lamella_operator.reconciling.reconcile import Brain
from lamella_operator.settings import Settings
from lamella_operator.status.document import should_write, status_document
from lamella_operator.status.events import events


def brain(settings: Settings) -> Brain:
    """Decides and speaks under ``settings``."""
    return Brain(
        decide=lambda observed: decide(observed, settings),
        wants_rivals=wants_rivals,
        status_document=lambda observed, situation: status_document(observed, situation, settings),
        should_write=should_write,
        events=events,
    )
