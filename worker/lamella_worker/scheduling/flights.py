"""Steps between being sent and coming back: whose rows they carry, and what must return.

Knows no queues and no blocks. A segment belongs to a request for as long as the request holds the
slot under the same generation; what comes back for a tenure that is over (cancelled, preempted,
failed) is nobody's. In the flow: `scheduler` sends and lands steps here, in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from lamella_contract.errors import WireError
from lamella_contract.wire import SegmentHeader, StepDone
from lamella_worker.scheduling.cohorts import DecodeStep
from lamella_worker.scheduling.cost import Work
from lamella_worker.scheduling.draft import Draft
from lamella_worker.scheduling.requests import LiveRequest


@dataclass(frozen=True, slots=True)
class Flight:
    """One step in flight; ``requests`` has one entry per segment, ``filled`` the places of those
    that fill a block.
    """

    step: int
    segments: tuple[SegmentHeader, ...]
    requests: tuple[LiveRequest, ...]
    filled: tuple[int, ...]
    work: Work
    decode_rows: int
    prompt_tokens: int
    sent_s: float
    is_typical: bool  # its time tells what such rows take
    decode_step: DecodeStep | None

    def tenants(self) -> Iterator[tuple[LiveRequest, SegmentHeader]]:
        """The requests that still hold their segment's slot, with the segment."""
        for request, segment in zip(self.requests, self.segments, strict=True):
            if request.slot == segment.slot and request.generation == segment.generation:
                yield request, segment

    def full(self) -> Iterator[tuple[LiveRequest, int]]:
        """(request, end of its rows) of each segment that filled a block, if its tenure goes on."""
        for index in self.filled:
            request, segment = self.requests[index], self.segments[index]
            if request.slot == segment.slot and request.generation == segment.generation:
                yield request, segment.start + segment.count

    def landed(self, done: StepDone) -> list[tuple[LiveRequest, tuple[int, ...]]]:
        """(request, new ids) of each sampled segment whose tenure goes on.

        Raises `WireError` unless the rows are those that the step asked for, in order.
        """
        sampled = [index for index, segment in enumerate(self.segments) if segment.sample]
        if len(done.rows) != len(sampled):
            raise WireError(f"step done: got {len(done.rows)} rows, want {len(sampled)}")
        found = []
        for index, (slot, generation, position, ids) in zip(sampled, done.rows, strict=True):
            segment = self.segments[index]
            if (slot, generation, position) != (
                segment.slot,
                segment.generation,
                segment.start + segment.count,
            ):
                raise WireError(
                    f"step done: got position {position} of slot {slot}, generation "
                    f"{generation}, want the row of {segment}"
                )
            request = self.requests[index]
            if request.slot == slot and request.generation == generation:
                found.append((request, ids))
        return found


class Flights:
    """The steps in flight, oldest first, and how much decoding they hold."""

    def __init__(self) -> None:
        self.decode_steps = 0
        self.decode_rows = 0
        self._flights: deque[Flight] = deque()

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def have_rows(self) -> bool:
        return self.steps_with_rows > 0

    @property
    def steps_with_rows(self) -> int:
        return sum(bool(flight.segments) for flight in self._flights)

    def send(self, step: int, draft: Draft, work: Work, now_s: float) -> None:
        flight = Flight(
            step=step,
            segments=tuple(draft.segments),
            requests=tuple(draft.requests),
            filled=tuple(draft.filled),
            work=work,
            decode_rows=draft.decode_rows,
            prompt_tokens=draft.prompt_tokens,
            sent_s=now_s,
            is_typical=draft.is_typical,
            decode_step=draft.decode_step,
        )
        self._flights.append(flight)
        self.decode_steps += flight.decode_rows > 0
        self.decode_rows += flight.decode_rows

    def oldest(self) -> Flight | None:
        return self._flights[0] if self._flights else None

    def land(self) -> None:
        """The oldest is no longer in flight."""
        flight = self._flights.popleft()
        self.decode_steps -= flight.decode_rows > 0
        self.decode_rows -= flight.decode_rows

    def clear(self) -> None:
        self._flights.clear()
        self.decode_steps = self.decode_rows = 0

    def awaited(self) -> set[int]:
        """Arrivals of the requests that a token is under way for; asserts that it is only one."""
        assert self.decode_rows == sum(flight.decode_rows for flight in self._flights)
        assert self.decode_steps == sum(flight.decode_rows > 0 for flight in self._flights)
        found: set[int] = set()
        for flight in self._flights:
            for request, segment in flight.tenants():
                if segment.sample:
                    assert request.arrival not in found, "a row is in two steps in flight"
                    found.add(request.arrival)
        return found
