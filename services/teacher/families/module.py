"""Any torch module whose blocks are named: a recommender's MLP, a model of sensor data.

The operator's config says how to build it, where its parts are and what it reads. A module of rows, whose
`embed` gives [B, D], has one position a row; its blocks work on each position of a message by itself. A block
of a module of sequences that mixes positions should take `mask`, [B, L], bool: messages can be ragged.

Shapes: B batch, L positions, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from services.teacher.families.base import (
    InputField,
    Modality,
    States,
    TeacherFacts,
    UnsupportedError,
    fingerprint,
    freeze,
)
from services.teacher.families.input_fields import check_one_kind, check_tensors, parse_fields
from services.teacher.families.module_parts import ModuleParts, build_module, find_parts, load_state
from services.teacher.families.transformer import masked_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from services.teacher.config import ModuleConfig

__all__ = ["ModuleTeacher"]

_ROW_RANK = 2
_SEQUENCE_RANK = 3
_PROBE_ROWS = 2


class ModuleTeacher:
    """A frozen torch module; see `base.Teacher` for the methods.

    Args:
        parts: the module and its parts, on `device` and in `dtype`.
        inputs: what it reads.
        name: the teacher's name for its students.
        max_len: the largest size of an input's axes of any size.
        device: where the module is.
        dtype: what it computes in.

    Raises:
        ValueError: a part gives another shape than the config promises.
    """

    def __init__(
        self,
        parts: ModuleParts,
        inputs: tuple[InputField, ...],
        *,
        name: str,
        max_len: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        freeze(parts.module)
        self._parts = parts
        self._device = device
        self._dtype = dtype
        embedded = _probe_embed(parts, self._cast(_probe_inputs(inputs, device)))
        self._is_rows = embedded.ndim == _ROW_RANK
        self._facts = TeacherFacts(
            name=name,
            family="module",
            num_layers=len(parts.blocks),
            hidden_size=embedded.shape[-1],
            modality=Modality.TENSORS,
            dtype=dtype,
            num_parameters=sum(parameter.numel() for parameter in parts.module.parameters()),
            fingerprint=fingerprint(parts.module),
            has_head=parts.head is not None,
            max_len=max_len,
            masks_padding=self._is_rows or set(parts.blocks) <= parts.masked,
            inputs=inputs,
        )
        _probe_rest(parts, embedded)

    @classmethod
    def load(
        cls,
        config: ModuleConfig,
        *,
        name: str,
        python_path: Sequence[Path],
        max_input_len: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Self:
        """Builds a module by its factory and loads its state.

        Args:
            config: where everything is.
            name: the teacher's name for its students.
            python_path: folders to import the factory from, before all others.
            max_input_len: the service's limit, in positions.
            device: where it computes.
            dtype: what its floating-point parameters are cast to.

        Raises:
            ValueError: a path names nothing, or the state or a shape does not fit.
            OSError: the weights can't be read.
            ImportError: the factory can't be imported.
        """
        module = build_module(config, python_path)
        load_state(module, config.weights)
        module = module.to(device=device, dtype=dtype)
        return cls(
            find_parts(module, config),
            parse_fields(config.inputs),
            name=name,
            max_len=max_input_len,
            device=device,
            dtype=dtype,
        )

    @property
    def facts(self) -> TeacherFacts:
        """What the teacher is."""
        return self._facts

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    def parameters(self) -> Iterator[Tensor]:
        """Yields the frozen parameters."""
        return self._parts.module.parameters()

    def prepare(self, texts: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Checks the named tensors of the config's `inputs` and returns them as they are.

        Raises:
            InputsError: they are not what the teacher reads.
        """
        check_one_kind(texts, tensors, accepts_texts=False)
        return check_tensors(self._facts.inputs, tensors, max_len=self._facts.max_len)

    def lower(self, inputs: Mapping[str, Tensor], s: int) -> States:
        """Runs the embedding and the first `s` blocks; every position is valid."""
        hidden_states: Tensor = self._parts.embed(**self._cast(inputs))
        if self._is_rows:
            hidden_states = hidden_states[:, None]  # [B, D] -> [B, 1, D]
        mask = torch.ones(hidden_states.shape[:2], dtype=torch.bool, device=hidden_states.device)
        return States(self._run(self._parts.blocks[:s], hidden_states, mask), mask)

    def upper(self, states: States, s: int) -> States:
        """Runs the blocks from `s` on and the final norm; keeps the shapes of its argument."""
        rest = self._parts.blocks[s:] + self._parts.norms
        return States(self._run(rest, states.hidden_states, states.mask), states.mask)

    def compile(self, backend: str) -> None:
        """Has the blocks compiled when they are first used, once for each shape."""
        for block in self._parts.blocks:
            block.compile(dynamic=False, backend=backend)

    def pool(self, states: States) -> Tensor:
        """Returns the mean over valid positions, [B, D]; zeros for a row without one."""
        return masked_mean(states)

    def head(self, states: States) -> Tensor:
        """Returns the head's output for the pooled state, [B, outputs].

        Raises:
            UnsupportedError: the module has no head.
        """
        if self._parts.head is None:
            raise UnsupportedError("logits: got a teacher without a head, expected one with a head")
        output: Tensor = self._parts.head(self.pool(states))
        return output[:, None] if output.ndim == 1 else output

    def _run(self, blocks: Sequence[nn.Module], hidden_states: Tensor, mask: Tensor) -> Tensor:
        """Runs blocks on [B, L, D]; those of a module of rows see [B*L, D], what they were trained on."""
        shape = hidden_states.shape
        if self._is_rows:
            hidden_states = hidden_states.reshape(-1, shape[-1])
        for block in blocks:
            hidden_states = self._parts.run(block, hidden_states, mask)
        return hidden_states.reshape(shape)

    def _cast(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Casts floating-point inputs to what the module computes in."""
        return {
            name: tensor.to(self._dtype) if tensor.is_floating_point() else tensor
            for name, tensor in inputs.items()
        }


def _probe_inputs(fields: Sequence[InputField], device: torch.device) -> dict[str, Tensor]:
    """Returns two rows of zeros for each field, with 1 for an axis of any size."""
    sizes = {field.name: (_PROBE_ROWS, *(abs(size) for size in field.shape[1:])) for field in fields}
    return {field.name: torch.zeros(sizes[field.name], dtype=field.dtype, device=device) for field in fields}


@torch.no_grad()
def _probe_embed(parts: ModuleParts, inputs: Mapping[str, Tensor]) -> Tensor:
    """Returns what `embed` gives, [B, D] or [B, L, D]."""
    embedded: Tensor = parts.embed(**inputs)
    if embedded.ndim not in (_ROW_RANK, _SEQUENCE_RANK) or embedded.shape[0] != _PROBE_ROWS:
        raise ValueError(
            f"model.embed: got shape {list(embedded.shape)} for {_PROBE_ROWS} rows, expected "
            "[batch, hidden_size] or [batch, length, hidden_size]"
        )
    return embedded


@torch.no_grad()
def _probe_rest(parts: ModuleParts, hidden_states: Tensor) -> None:
    """Checks that blocks and norm keep the shape and that the head gives a vector or a number a row."""
    mask = torch.ones(hidden_states.shape[:2], dtype=torch.bool, device=hidden_states.device)
    for index, part in enumerate(parts.blocks + parts.norms):
        field = f"blocks[{index}]" if index < len(parts.blocks) else "norm"
        output = parts.run(part, hidden_states, mask)
        if output.shape != hidden_states.shape:
            raise ValueError(
                f"model.{field}: got shape {list(output.shape)}, expected {list(hidden_states.shape)}"
            )
        hidden_states = output
    if parts.head is None:
        return
    pooled = hidden_states if hidden_states.ndim == _ROW_RANK else hidden_states.mean(1)
    outputs: Tensor = parts.head(pooled)
    if outputs.ndim not in (1, _ROW_RANK) or outputs.shape[0] != _PROBE_ROWS:
        raise ValueError(f"model.head: got shape {list(outputs.shape)}, expected [{_PROBE_ROWS}, outputs]")
