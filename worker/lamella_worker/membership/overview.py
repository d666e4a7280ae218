"""How a whole pipeline is, as its stage 0 tells gateways and /status: made of what was heard.

Knows the ring and the last heartbeat of each stage; no sockets. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from lamella_contract.config import StageConfig
from lamella_contract.wire import Ceiling, Heartbeat, PipelineStatus, StageReport
from lamella_worker.membership.ring import Ring
from lamella_worker.process.telemetry import Telemetry

DRAINING = "draining"
"""Why a pipeline that is about to end takes nothing new."""


def readiness(ring: Ring, telemetry: Telemetry) -> tuple[bool, str]:
    """Whether requests are taken, and why not."""
    if telemetry.draining:
        return False, DRAINING
    return ring.ready, ring.reason


def stage_reports(
    config: StageConfig, ring: Ring, beats: Mapping[int, Heartbeat], now_s: float
) -> tuple[StageReport, ...]:
    """Every stage of the pipeline, those that were never heard as ``absent``."""
    reports = []
    for stage in range(config.pipeline.num_stages):
        first, end = config.pipeline.layer_range(stage)
        layers = f"{first} to {end - 1}"
        beat, member = beats.get(stage), ring.members.get(stage)
        if beat is None or member is None:
            reports.append(StageReport(stage, "absent", layers))
            continue
        silent = now_s - member.last_heard_s > config.suspect_after_s
        state = "silent" if silent and beat.state != "failed" else beat.state
        loaded = (beat.bytes_done, beat.bytes_total, beat.bytes_per_s)
        reports.append(StageReport(stage, state, layers, *loaded, beat.error))
    return tuple(reports)


def pipeline_status(
    ring: Ring, telemetry: Telemetry, stages: tuple[StageReport, ...]
) -> PipelineStatus:
    """What gateways are told."""
    stats = telemetry.scheduler
    ready, reason = readiness(ring, telemetry)
    return PipelineStatus(
        ready=ready,
        reason=reason,
        kv_tokens=stats.kv_tokens if stats else 0,
        kv_tokens_free=stats.kv_tokens_free if stats else 0,
        queued_tokens=stats.queued_tokens if stats else 0,
        running=stats.running if stats else 0,
        waiting=stats.waiting if stats else 0,
        stages=stages,
        roofline=tuple(Ceiling(*each) for each in telemetry.ring.roofline().items()),
    )
