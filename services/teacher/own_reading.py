"""The teacher's own reading of inputs, through its cache.

What a frozen teacher sees in an input never changes: its lower states T_lo(x), its upper states, their pool
and its logits are kept row by row, under the content of the row. So a row costs the teacher one pass in all
of training, also when batches are shuffled, and what several turns of a batch lack is computed together.

A deterministic conversation's reading is kept by turn: rows read in other company differ in the last bit.

Shapes: B rows, L positions, D the teacher's hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

from services.teacher.families.base import Modality, States
from services.teacher.observations import entry_key, row_digests, valid_lengths
from services.teacher.packing import join_inputs, stack_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from services.teacher.families.base import Teacher, TeacherFacts
    from services.teacher.observations import ObservationCache

__all__ = ["LOGITS", "LOWER", "POOLED", "UPPER", "OwnReading", "Reader", "ReadingRequest"]

LOWER, UPPER, POOLED, LOGITS = "lower", "upper", "pooled", "logits"
_STATES = (LOWER, UPPER)

# Parts of one row (or, for a deterministic turn, of all of them): states come with their mask.
_Row: TypeAlias = "dict[str, tuple[Tensor, ...]]"


@dataclass(frozen=True, eq=False)
class ReadingRequest:
    """What is wanted of some inputs.

    Attributes:
        inputs: prepared, on the CPU.
        parts: some of `LOWER`, `UPPER`, `POOLED`, `LOGITS`.
        split_layer: the talking layer, for `LOWER`.
        scope: who may find what is kept.
        whole: whether it is computed and kept as it is, not row by row.
    """

    inputs: Mapping[str, Tensor]
    parts: frozenset[str]
    split_layer: int
    scope: str
    whole: bool = False


@dataclass(frozen=True, eq=False)
class OwnReading:
    """What the teacher sees in some inputs, on its device.

    Attributes:
        states: `LOWER` and `UPPER`, [B, L, D] each, if wanted.
        vectors: `POOLED` [B, D] and `LOGITS` [B, outputs], if wanted.
        num_cached_rows: rows that were not computed.
    """

    states: dict[str, States]
    vectors: dict[str, Tensor]
    num_cached_rows: int = 0


class Reader:
    """Reads inputs for a teacher, once.

    Args:
        teacher: the frozen teacher.
        cache: keeps what was read; None: nothing is kept.
        max_batch_tokens: rows x positions of one pass.
    """

    def __init__(self, teacher: Teacher, cache: ObservationCache | None, max_batch_tokens: int) -> None:
        self._teacher = teacher
        self._cache = cache
        self._max_batch_tokens = max_batch_tokens

    @torch.no_grad()
    def read(self, requests: Sequence[ReadingRequest]) -> list[OwnReading]:
        """Reads inputs; what several requests lack is computed together where their shapes allow it.

        Raises:
            UnsupportedError: logits of a teacher without a head.
        """
        if self._cache is None:
            return [self._compute(request.inputs, request.parts, request.split_layer) for request in requests]
        rows = [_Rows(request, self._teacher.facts) for request in requests]
        for each in rows:
            each.look_up(self._cache)
        for group in _groups(rows, self._max_batch_tokens):
            self._fill(group, self._cache)
        return [each.assemble(self._teacher.device) for each in rows]

    def _fill(self, group: Sequence[tuple[_Rows, int]], cache: ObservationCache) -> None:
        """Computes the rows that are missing and keeps them."""
        first = group[0][0].request
        inputs = join_inputs([rows.inputs_of(index) for rows, index in group])
        reading = _to_host(self._compute(inputs, first.parts, first.split_layer))
        start = 0
        for rows, index in group:
            end = start + rows.num_rows_of(index)
            rows.put(index, _slice(reading, start, end), cache)
            start = end

    def _compute(self, inputs: Mapping[str, Tensor], parts: frozenset[str], split_layer: int) -> OwnReading:
        if not parts:
            return OwnReading({}, {})
        teacher = self._teacher
        lower = teacher.lower(
            {name: tensor.to(teacher.device) for name, tensor in inputs.items()}, split_layer
        )
        states, vectors = {}, {}
        if LOWER in parts:
            states[LOWER] = lower
        if parts - {LOWER}:
            upper = teacher.upper(lower, split_layer)
            if UPPER in parts:
                states[UPPER] = upper
            if POOLED in parts:
                vectors[POOLED] = teacher.pool(upper)
            if LOGITS in parts:
                vectors[LOGITS] = teacher.head(upper)
        return OwnReading(states, vectors)


class _Rows:
    """The units in which one request is looked up, computed and kept: its rows, or all of it at once.

    Attributes:
        mask: [B, L], bool, what is no padding; None: nothing is.
    """

    def __init__(self, request: ReadingRequest, facts: TeacherFacts) -> None:
        self.request = request
        # To a module an input of that name may mean anything; a teacher of texts has it always.
        self.mask = request.inputs["attention_mask"] if facts.modality is Modality.TEXT else None
        self.lengths = _lengths(request.inputs, self.mask)
        self.num_rows = len(self.lengths)
        cuts = self.mask is not None and not request.whole
        digests = row_digests(request.inputs, cut_padding=cuts)
        if request.whole:
            shapes = str({name: tuple(tensor.shape) for name, tensor in request.inputs.items()})
            digests = [b"".join(digests) + shapes.encode()]
        self._names = {
            part: f"{part}:{request.split_layer if part == LOWER else ''}{':whole' if request.whole else ''}"
            for part in request.parts
        }
        self._keys = [
            {
                part: entry_key(request.scope, facts.fingerprint, name, digest)
                for part, name in self._names.items()
            }
            for digest in digests
        ]
        self._found: list[_Row | None] = [None] * len(digests)
        self._num_cached = 0

    def look_up(self, cache: ObservationCache) -> None:
        """Finds what is kept."""
        for index, keys in enumerate(self._keys):
            row: _Row = {}
            for part, key in keys.items():
                value = cache.get(key)
                if value is None:
                    break
                row[part] = value
            else:
                self._found[index] = row
                self._num_cached += self.num_rows_of(index)

    @property
    def missing(self) -> list[int]:
        """The units that have to be computed."""
        return [index for index, row in enumerate(self._found) if row is None]

    def num_rows_of(self, index: int) -> int:  # noqa: ARG002 - all units are alike
        """Returns the rows of a unit."""
        return self.num_rows if self.request.whole else 1

    def num_tokens_of(self, index: int) -> int:
        """Returns the rows x positions of a unit."""
        return sum(self.lengths) if self.request.whole else self.lengths[index]

    def inputs_of(self, index: int) -> Mapping[str, Tensor]:
        """Returns the inputs of a unit; a row is cut after its last valid position."""
        if self.request.whole:
            return self.request.inputs
        length = self.lengths[index]
        return {
            name: tensor[index : index + 1, :length]
            if _has_positions(tensor, self.mask)
            else tensor[index : index + 1]
            for name, tensor in self.request.inputs.items()
        }

    def put(self, index: int, reading: OwnReading, cache: ObservationCache) -> None:
        """Takes in what was computed of a unit."""
        row: _Row = {}
        for part, states in reading.states.items():
            hidden_states, mask = states.hidden_states, states.mask
            if not self.request.whole and self.mask is not None:
                length = self.lengths[index]
                hidden_states, mask = hidden_states[:, :length], mask[:, :length]
            row[part] = (hidden_states, mask)
        for part, vector in reading.vectors.items():
            row[part] = (vector,)
        self._found[index] = row
        for part, value in row.items():
            cache.put(self._keys[index][part], value)

    def assemble(self, device: torch.device) -> OwnReading:
        """Puts the rows together, with the length of the inputs."""
        rows = [row for row in self._found if row is not None]
        length = 0 if self.mask is None else self.mask.shape[1]
        states = {
            part: stack_rows([row[part] for row in rows], length, device)
            for part in _STATES
            if part in rows[0]
        }
        vectors = {
            part: torch.cat([row[part][0] for row in rows]).to(device)
            for part in rows[0]
            if part not in _STATES
        }
        return OwnReading(states, vectors, self._num_cached)


def _groups(requests: Iterable[_Rows], max_tokens: int) -> list[list[tuple[_Rows, int]]]:
    """Groups the missing units that can be computed in one pass, under a budget of tokens."""
    by_kind: dict[object, list[tuple[_Rows, int]]] = {}
    for rows in requests:
        for index in rows.missing:
            by_kind.setdefault(_kind(rows, index), []).append((rows, index))
    groups = []
    for units in by_kind.values():
        group: list[tuple[_Rows, int]] = []
        longest = 0
        for rows, index in sorted(units, key=lambda unit: unit[0].num_tokens_of(unit[1])):
            longest = max(longest, rows.num_tokens_of(index))
            if group and longest * (len(group) + 1) > max_tokens:
                groups.append(group)
                group, longest = [], rows.num_tokens_of(index)
            group.append((rows, index))
        groups.append(group)
    return groups


def _kind(rows: _Rows, index: int) -> object:
    """Returns what units must have in common to be computed together."""
    request = rows.request
    if request.whole:
        return (id(rows), index)
    names = tuple(
        (name, tensor.dtype, None if _has_positions(tensor, rows.mask) else tensor.shape[1:])
        for name, tensor in sorted(request.inputs.items())
    )
    return (request.parts, request.split_layer, names)


def _has_positions(tensor: Tensor, mask: Tensor | None) -> bool:
    """Whether a tensor has the positions that a mask marks, and may so be cut and padded."""
    return mask is not None and tensor.shape[:2] == mask.shape


def _lengths(inputs: Mapping[str, Tensor], mask: Tensor | None) -> list[int]:
    """Returns the positions of each row up to its last valid one, at least 1."""
    if mask is None:
        first = next(iter(inputs.values()))
        longest = max(tensor.shape[1] if tensor.ndim > 1 else 1 for tensor in inputs.values())
        return [int(longest)] * int(first.shape[0])
    return [max(length, 1) for length in valid_lengths(mask)]


def _to_host(reading: OwnReading) -> OwnReading:
    return OwnReading(
        {part: States(each.hidden_states.cpu(), each.mask.cpu()) for part, each in reading.states.items()},
        {part: vector.cpu() for part, vector in reading.vectors.items()},
    )


def _slice(reading: OwnReading, start: int, end: int) -> OwnReading:
    return OwnReading(
        {
            part: States(states.hidden_states[start:end], states.mask[start:end])
            for part, states in reading.states.items()
        },
        {part: vector[start:end] for part, vector in reading.vectors.items()},
    )
