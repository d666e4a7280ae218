"""Who takes part in the next step, and with how many tokens.

Knows no gateway, no results and no clock. Three queues, each in order of age: *waiting* for a
slot, *prefilling* (running, part of the prompt not yet given to a step), *ready* (running, the
next token may be computed). A request whose sampling segment is in flight is in none. After a
change of epoch a fourth, *replaying*: what the last stages still hold is computed again on the
first ones. A step either replays or does all else, by turns.

A step takes decode rows first: a cohort of them, and none while as many cohorts are in flight as
pay. Then prompt chunks fill it up, oldest first; a younger prompt gets tokens only when all older
ones have all of theirs. So any request with a prompt still to compute is younger than all that
decode, and whoever must give way for blocks is never in the step already. A chunk may follow the
one before it while that is still in flight: stages work in order. In the flow:
`scheduler` fills a `Draft` here for every step.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from operator import attrgetter

from lamella_contract.wire import SegmentHeader
from lamella_worker.scheduling.chunks import LEAST_CHUNK, Chunks
from lamella_worker.scheduling.cohorts import Cohorts
from lamella_worker.scheduling.cost import CostModel
from lamella_worker.scheduling.draft import Draft
from lamella_worker.scheduling.limits import StepBudget
from lamella_worker.scheduling.requests import NO_SLOT, LiveRequest
from lamella_worker.scheduling.resync import Kept, Rewind
from lamella_worker.scheduling.running import RunningSet

_arrival = attrgetter("arrival")


class Composer:
    """The queues and the choice; a step costs O(live segments), whatever waits."""

    def __init__(
        self,
        running: RunningSet,
        cost: CostModel,
        *,
        max_step_tokens: int,
        step_limit_s: float,
    ) -> None:
        self.running = running
        self.cohorts = Cohorts(cost)
        self._chunks = Chunks(cost, self.cohorts, step_limit_s)
        self.waiting: OrderedDict[int, LiveRequest] = OrderedDict()
        self.prefilling: OrderedDict[int, LiveRequest] = OrderedDict()
        self.ready: OrderedDict[int, LiveRequest] = OrderedDict()
        self.replaying: OrderedDict[int, tuple[LiveRequest, Rewind]] = OrderedDict()
        self.rows_replayed = 0
        self.queued_tokens = 0  # prompt tokens that no step was given yet
        self.preemptions = 0
        self.tokens_asked = self.tokens_found = 0  # in the prefix cache, by who got a slot
        self.cohort_count = 1
        self._cost = cost
        self.budget = StepBudget(max_step_tokens)
        self._step_limit_s = step_limit_s
        self._decoding = 0  # rows that decode: ready, in this step, or in flight
        self._replay_is_next = False
        self._context = 0.0  # mean length of the decode rows of the last step with some

    def enqueue(self, request: LiveRequest) -> None:
        """A new request, younger than all others."""
        self.waiting[request.arrival] = request
        self.queued_tokens += len(request.ids)

    def withdraw(self, request: LiveRequest) -> None:
        """Take a request out of everything: it waits no more and holds nothing."""
        arrival = request.arrival
        if request.slot == NO_SLOT:
            del self.waiting[arrival]
            self.queued_tokens -= len(request.ids)
            return
        self._unqueue(request)
        self.running.release(request)

    def begin_again(self, request: LiveRequest) -> None:
        """Compute a running request anew, from its first id."""
        self._unqueue(request)
        self.running.renew(request)
        self._resume(request)

    def _unqueue(self, request: LiveRequest) -> None:
        replayed = self.replaying.pop(request.arrival, None)
        if self.prefilling.pop(request.arrival, None) is not None or replayed is not None:
            self.queued_tokens -= len(request.ids) - request.computed
        self.ready.pop(request.arrival, None)

    def restart(self, kept: Kept) -> None:
        """All that run go on from what the stages hold; who waits goes on waiting."""
        self.prefilling.clear()
        self.ready.clear()
        self.replaying.clear()
        self.queued_tokens = sum(len(request.ids) for request in self.waiting.values())
        for request, rewind in self.running.restart(kept):
            if rewind.start < rewind.until:
                self.replaying[request.arrival] = (request, rewind)
                self.queued_tokens += len(request.ids) - request.computed
            else:
                self._resume(request)

    def _resume(self, request: LiveRequest) -> None:
        """Compute what is left: at once if it is little, else in chunks, in order of age."""
        pending = len(request.ids) - request.computed
        older = next(iter(self.prefilling), request.arrival)
        if pending <= LEAST_CHUNK and older >= request.arrival:
            self.ready[request.arrival] = request
            return
        self.prefilling[request.arrival] = request
        self.queued_tokens += pending
        in_order = sorted(self.prefilling)
        if in_order[-1] != request.arrival:
            self.prefilling = OrderedDict((key, self.prefilling[key]) for key in in_order)

    def takes_turn_to_replay(self) -> bool:
        """Whether the next step computes what only the first stages lack."""
        self._replay_is_next = bool(self.replaying) and not self._replay_is_next
        return self._replay_is_next

    def add_replays(self, draft: Draft) -> None:
        """Fill the step with rows that the stages after one and the same hold, oldest first."""
        self._begin_chunks()
        for arrival, (request, rewind) in list(self.replaying.items()):
            if draft.segments and rewind.through != draft.through:
                continue
            count = min(self._chunk_tokens(draft, request), rewind.until - request.computed)
            if count <= 0:
                return
            draft.through = rewind.through
            fed = self._feed(draft, request, count)
            assert fed, "rows that were computed before have blocks"
            draft.prompt_tokens += count
            self.queued_tokens -= count
            if request.computed == rewind.until:
                del self.replaying[arrival]
                self.queued_tokens -= len(request.ids) - request.computed
                self._resume(request)

    def add_decodes(self, draft: Draft, *, steps_in_flight: int, rows_in_flight: int) -> None:
        """Put a cohort of ready rows into the step, unless enough cohorts are in flight."""
        ready = self.ready
        rows = self._decoding = len(ready) + rows_in_flight
        if not ready:
            return
        self.cohort_count = self.cohorts.count(rows, self._context)
        if steps_in_flight >= self.cohort_count:
            return
        most = min(-(-rows // self.cohort_count), self.budget.tokens)
        if most > 1:
            most = min(most, self._cost.decode_rows(self._context, self._step_limit_s))
        # Whoever waits longest goes first; by age within the step, so that blocks are taken from
        # rows that are not in it yet.
        for request in sorted(islice(ready.values(), most), key=_arrival):
            room = self.budget.tokens - len(draft.ids)
            if request.arrival in ready and room > 0:
                self._add_decode(draft, request, room)
        if draft.decode_rows:
            self._context = draft.pairs / draft.decode_rows
            draft.decoding, draft.cohorts = rows, self.cohort_count

    def _add_decode(self, draft: Draft, request: LiveRequest, room: int) -> None:
        # More than one token is pending after a row that brought several ids.
        count = min(len(request.ids) - request.computed, room)
        if not self._feed(draft, request, count):
            self._preempt(request)
            return
        draft.decode_rows += 1
        if request.computed == len(request.ids):
            del self.ready[request.arrival]

    def add_prefills(self, draft: Draft, *, steps_in_flight: int) -> None:
        """Fill the step up with prompt chunks, admitting requests that wait.

        ``steps_in_flight`` are those with rows.
        """
        if not self._begin_chunks() or not self._chunks.may_start(draft, steps_in_flight):
            return
        for request in list(self.prefilling.values()):
            if request.arrival in self.prefilling and not self._add_chunk(draft, request):
                return
        while self.waiting and self.running.has_free_slot:
            request = next(iter(self.waiting.values()))
            if self.budget.tokens <= len(draft.ids) or not self._has_blocks_for(request):
                return
            sources = self.running.known(request)
            held = len(sources) * self.running.block_size
            if self._chunk_tokens(draft, request, held) <= 0:
                return
            del self.waiting[request.arrival]
            self.prefilling[request.arrival] = request
            draft.adopts.append(self.running.admit(request, sources))
            self._count_found(request, held)
            is_whole = self._add_chunk(draft, request)
            assert draft.requests[-1] is request, "stages copy in the step that goes on from there"
            if not is_whole:
                return

    def _count_found(self, request: LiveRequest, held: int) -> None:
        self.queued_tokens -= held
        self.tokens_asked += len(request.ids)
        self.tokens_found += held
        if request.cached < 0:
            request.cached = min(held, request.prompt_len)

    def _add_chunk(self, draft: Draft, request: LiveRequest) -> bool:
        """Put the next part of a prompt into the step; whether the prompt is all given out."""
        count = self._chunk_tokens(draft, request)
        if count <= 0 or not self._feed(draft, request, count):
            return False
        draft.prompt_tokens += count
        self.queued_tokens -= count
        if request.computed < len(request.ids):
            return False
        del self.prefilling[request.arrival]
        return True

    def _chunk_tokens(self, draft: Draft, request: LiveRequest, held: int = 0) -> int:
        """Tokens of a request's prompt that the step has room for; 0 for none.

        A waiting one begins with ``held`` positions: they will not have to be computed, and the
        answer must be the same before and after it gets its slot.
        """
        start = held or request.computed
        room = self.budget.tokens - len(draft.ids)
        pending, queued = len(request.ids) - start, self.queued_tokens - held
        return self._chunks.tokens(draft, start, pending, room=room, queued=queued)

    def _begin_chunks(self) -> bool:
        """Whether there are prompts that the step may compute, and who decodes beside them."""
        prompts = len(self.prefilling) + len(self.replaying)
        prompts += min(len(self.waiting), self.running.free_slots)
        if prompts:
            self._chunks.begin(self._decoding, self._context, prompts)
        return prompts > 0

    def _has_blocks_for(self, request: LiveRequest) -> bool:
        """Whether a waiting request's ids fit beside what the running ones are sure to need.

        One block more for each running request keeps a newcomer from being preempted at once.
        """
        running = self.running
        need = running.blocks_for(len(request.ids)) + len(running)
        replaying = (other for other, _ in self.replaying.values())
        for other in (*self.prefilling.values(), *replaying):
            need += running.missing_blocks(other, len(other.ids))
        return need <= running.blocks.free_blocks

    def _feed(self, draft: Draft, request: LiveRequest, count: int) -> bool:
        """Append ``count`` rows of a running request; False, and no change, without blocks."""
        start = request.computed
        end = start + count
        missing = self.running.missing_blocks(request, end)
        new_blocks: tuple[int, ...] = ()
        if missing:
            found = self._take_blocks(draft, request, missing)
            if found is None:
                return False
            new_blocks = found
        sample = end == len(request.ids)
        if count > 1 and end % self.running.block_size < count:
            draft.filled.append(len(draft.segments))
        draft.segments.append(
            SegmentHeader(request.slot, request.generation, start, count, sample, new_blocks)
        )
        draft.requests.append(request)
        draft.ids += request.ids[start:end]
        draft.pairs += count * start + count * (count + 1) // 2
        if start < request.given:
            self.rows_replayed += min(end, request.given) - start
        request.computed = end
        return True

    def _take_blocks(
        self, draft: Draft, request: LiveRequest, count: int
    ) -> tuple[int, ...] | None:
        """Blocks for a running request, taken from the youngest until there are enough.

        None when the request is itself the youngest and must wait for the older ones, and when the
        youngest is in the step already (a prompt that is computed again may be the older one).
        """
        while (found := self.running.extend(request, count)) is None:
            victim = self.running.youngest()
            if victim is request or victim in draft.requests:
                return None
            self._preempt(victim)
        return found

    def give_way(self) -> None:
        """The youngest running request waits again."""
        self._preempt(self.running.youngest())

    def _preempt(self, victim: LiveRequest) -> None:
        """Send the youngest running request back to the head of the queue.

        It keeps its ids; what it has in flight is drawn again (the same, as the random numbers
        are keyed by position).
        """
        self.withdraw(victim)
        self.preemptions += 1
        self.queued_tokens += len(victim.ids)
        self.waiting[victim.arrival] = victim
        self.waiting.move_to_end(victim.arrival, last=False)

    def check_integrity(self) -> None:
        """Assert that every request is where it belongs; O(live + pool)."""
        self.running.check_integrity()
        arrivals = list(self.waiting)
        assert arrivals == sorted(arrivals), "the queue is out of order"
        assert all(request.slot == NO_SLOT for request in self.waiting.values())
        running = {request.arrival: request for request in self.running}
        if running and arrivals:
            assert max(running) < arrivals[0], "a request that waits is older than a running one"
        for queue in (self.prefilling, self.ready):
            for arrival, request in queue.items():
                assert running.get(arrival) is request, "queued to run without a slot"
                assert request.computed < len(request.ids), "queued to run with nothing to compute"
        for arrival, (request, rewind) in self.replaying.items():
            assert running.get(arrival) is request, "replayed without a slot"
            assert rewind.start <= request.computed < rewind.until < len(request.ids)
        queued = [*self.prefilling, *self.ready, *self.replaying]
        assert len(set(queued)) == len(queued), "in two queues"
        tokens = sum(len(request.ids) for request in self.waiting.values())
        tokens += sum(len(r.ids) - r.computed for r in self.prefilling.values())
        tokens += sum(len(r.ids) - r.computed for r, _ in self.replaying.values())
        assert tokens == self.queued_tokens, "queued tokens are miscounted"
