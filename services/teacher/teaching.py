"""Computes batches of turns: reads what they need of the teacher, then passes them through it together."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from preceptor.terms import Reading
from services.teacher.graphs import GraphMeter
from services.teacher.observing import needed_parts, observe_pass
from services.teacher.own_reading import LOWER, Reader, ReadingRequest
from services.teacher.packing import length_bucket
from services.teacher.passes import exchange_pass, signature
from services.teacher.transfers import Transfers
from services.teacher.work import BackwardWork, ExchangeTurn, ObserveTurn

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from services.teacher.families.base import Teacher
    from services.teacher.observations import ObservationCache
    from services.teacher.own_reading import OwnReading
    from services.teacher.passes import Pass
    from services.teacher.work import Turn, Work

__all__ = ["Teaching", "batch_key"]


class Teaching:
    """One teacher, what it has read, and how much its graphs take.

    Args:
        teacher: the frozen teacher.
        cache: keeps its own reading of inputs; None: nothing is kept.
        max_batch_tokens: rows x positions of one pass of reading.
        shares_cache: whether all tenants find what is kept for one.
        in_buckets: whether passes are padded to sizes of which there are few, for compiled layers.
    """

    def __init__(
        self,
        teacher: Teacher,
        cache: ObservationCache | None,
        *,
        max_batch_tokens: int = 2048,
        shares_cache: bool = False,
        in_buckets: bool = False,
    ) -> None:
        self.teacher = teacher
        self.cache = cache
        self.transfers = Transfers(teacher.device)
        self._shares_cache = shares_cache
        self._in_buckets = in_buckets and teacher.facts.masks_padding
        self._reader = Reader(teacher, cache, max_batch_tokens)
        self._meter = GraphMeter(
            frozenset(parameter.untyped_storage().data_ptr() for parameter in teacher.parameters())
        )

    def forward(self, turns: Sequence[Turn], *, with_graph: bool) -> tuple[Sequence[Pass], dict[Turn, int]]:
        """Computes turns that `batch_key` puts together.

        Args:
            turns: all exchanges of one split layer, or all observes; all want gradients, or none.
            with_graph: whether a backward pass may follow.

        Returns:
            The passes, and of each turn that needed a reading the number of rows that came from the cache.
        """
        own = self._read(turns)
        # Nothing is read ahead where nothing is kept.
        num_cached = {
            turn: reading.num_cached_rows
            for turn, reading in own.items()
            if reading.states or reading.vectors
        }
        exchanges = [turn for turn in turns if isinstance(turn, ExchangeTurn)]
        passes: list[Pass] = []
        if exchanges:
            passes.append(self._exchange(exchanges, own, with_graph=with_graph))
        observes = [turn for turn in turns if isinstance(turn, ObserveTurn)]
        passes.extend(self._observe(turn, own[turn], with_graph=with_graph) for turn in observes)
        return passes, num_cached

    def _exchange(
        self, turns: Sequence[ExchangeTurn], own: dict[Turn, OwnReading], *, with_graph: bool
    ) -> Pass:
        readings = [own.get(turn) for turn in turns]
        compute = partial(
            exchange_pass, self.teacher, turns, readings, self.transfers, in_buckets=self._in_buckets
        )
        if not with_graph:
            return compute(with_graph=False)
        with self._meter.measured(signature(turns)) as num_bytes:
            result = compute(with_graph=True)
        result.num_bytes = num_bytes[0]
        return result

    def _observe(self, turn: ObserveTurn, own: OwnReading, *, with_graph: bool) -> Pass:
        if not (with_graph and turn.wants_gradient):
            return observe_pass(turn, own, with_graph=False)
        spec = None if turn.codec is None else turn.codec.spec
        length = turn.length if turn.message_mask is None else turn.message_mask.shape[1]
        with self._meter.measured((turn.kinds, turn.num_rows, turn.length, length, spec)) as num_bytes:
            result = observe_pass(turn, own, with_graph=True)
        result.num_bytes = num_bytes[0]
        return result

    def _read(self, turns: Sequence[Turn]) -> dict[Turn, OwnReading]:
        wanted = {turn: request for turn in turns if (request := self._request(turn)) is not None}
        return dict(zip(wanted, self._reader.read(list(wanted.values())), strict=True))

    def _request(self, turn: Turn) -> ReadingRequest | None:
        if isinstance(turn, ExchangeTurn):
            parts = frozenset({LOWER})
            if turn.inputs is None or turn.reading is Reading.REPLACE:
                return None
            inputs = turn.inputs
        else:
            # Without a cache there is nowhere to keep what is read ahead.
            parts = frozenset() if turn.ahead and self.cache is None else needed_parts(turn)
            inputs = turn.inputs
        scope = "" if self._shares_cache else turn.speaker.tenant  # no tenant's name is empty
        return ReadingRequest(inputs, parts, turn.split_layer, scope, whole=turn.speaker.deterministic)


def batch_key(teacher: Teacher, min_bucket: int = 1) -> Callable[[Work], Hashable]:
    """Returns a function that says what pieces of work must have in common to be computed together.

    Turns whose results must not depend on others have nothing in common with any. Where padding would be seen
    by the teacher's layers (see `TeacherFacts.masks_padding`), only equal shapes go together.

    Args:
        teacher: whose turns they are.
        min_bucket: up to so many positions lengths make no difference.
    """
    masks_padding = teacher.facts.masks_padding

    def key_of(work: Work) -> Hashable:
        turn = work.turn
        is_backward = isinstance(work, BackwardWork)
        if turn.speaker.deterministic:
            return work
        if isinstance(turn, ObserveTurn):
            return ("observe", is_backward, turn.wants_gradient)
        if masks_padding:
            shape: Hashable = length_bucket(max(turn.length, min_bucket))
        else:
            inputs = {} if turn.inputs is None else turn.inputs
            own = tuple((name, tensor.shape[1:]) for name, tensor in sorted(inputs.items()))
            shape = (turn.mask.shape[1], turn.reading, own)
        return ("exchange", is_backward, turn.wants_gradient, turn.split_layer, shape)

    return key_of
