"""How a model under `TalkingTrainer` gets its teacher's inputs and computes the losses that need them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import ModelOutput

from student_client.students import logits_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from student_client.config import LossWeights
    from student_client.pending import PendingObservation
    from student_client.talking import TalkingLosses
    from student_client.taps import Taps

__all__ = ["TEACHER_KEY", "TalkingHooks", "TeacherCollator"]

TEACHER_KEY = "teacher_inputs"


class TeacherCollator:
    """Collates what the model reads, and puts what the teacher reads beside it.

    Args:
        collator: collates what the model reads.
        wanted: the column of texts that the teacher reads, or the names of tensors.
    """

    def __init__(self, collator: Callable[..., dict[str, Any]], wanted: str | tuple[str, ...]) -> None:
        self._collator = collator
        self._wanted = wanted
        self.tokenizer = getattr(collator, "tokenizer", None)  # Trainer saves it

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Returns a batch; without what the teacher reads if rows lack it, as they may where it is away."""
        rows = [dict(feature) for feature in features]
        teacher: Any = None
        if not isinstance(self._wanted, str):
            if all(name in row for row in rows for name in self._wanted):
                teacher = {name: torch.as_tensor([row[name] for row in rows]) for name in self._wanted}
        elif all(self._wanted in row for row in rows):
            teacher = [row.pop(self._wanted) for row in rows]
        batch = dict(self._collator(rows))
        return batch if teacher is None else {**batch, TEACHER_KEY: teacher}


class TalkingHooks:
    """Computes the losses that need the teacher within the model's forward pass.

    Args:
        talking: computes them.
        taps: reads the model's states.
        weights: of the losses.
        mask: the model's input that marks valid positions; None: all.
    """

    def __init__(self, talking: TalkingLosses, taps: Taps, weights: LossWeights, mask: str | None) -> None:
        self._talking = talking
        self._taps = taps
        self._mask = mask
        self._weights = weights.model_dump()
        self._sums: dict[str, Tensor] = {}
        self._num_passes = 0
        self._is_again = False
        self._begun: tuple[Any, Tensor | None, PendingObservation | None] | None = None

    @contextlib.contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Has the hooks in a model while open."""
        handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def means(self) -> dict[str, float]:
        """Returns the mean of each loss since it was last asked for."""
        means = {f"loss_{name}": float(total) / self._num_passes for name, total in self._sums.items()}
        self._sums, self._num_passes = {}, 0
        return means

    def _before(self, _model: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if self._is_again:
            return None
        kwargs = dict(kwargs)
        teacher = kwargs.pop(TEACHER_KEY, None)
        self._begun = None
        if teacher is not None:
            if self._mask is not None and self._mask not in kwargs:
                raise ValueError(
                    f"talking.mask: got {self._mask!r}, expected one of {sorted(kwargs)} or null"
                )
            mask = None if self._mask is None else kwargs[self._mask]
            self._begun = (teacher, mask, self._talking.begin(teacher, mask))
        return args, kwargs

    def _after(self, model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if self._is_again or self._begun is None:
            return None
        (teacher, mask, begun), self._begun = self._begun, None
        kwargs = {name: value for name, value in kwargs.items() if name != "num_items_in_batch"}

        def run_again() -> Tensor:
            self._is_again = True
            try:
                loss: Tensor = model(*args, **kwargs)["loss"]
            finally:
                self._is_again = False
            return loss

        parts = self._talking.finish(begun, teacher, mask, logits_of(output), run_again)
        self._taps.clear()
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value.detach()
        self._num_passes += 1
        loss = torch.stack([self._weights[name] * value for name, value in parts.items()]).sum()
        if isinstance(output, ModelOutput):
            kind: Any = type(output)
            return _with_loss(kind)(**output, talking_loss=loss)
        return {**output, "talking_loss": loss}


@functools.cache
def _with_loss(kind: type) -> Any:
    """Returns an output class of transformers with one more field.

    A key that the class does not know would be lost, or refused, where data-parallel wrappers take an output
    apart and build it anew.
    """
    field = ("talking_loss", "torch.Tensor | None", None)
    return dataclasses.make_dataclass(f"Talking{kind.__name__}", [field], bases=(kind,))
