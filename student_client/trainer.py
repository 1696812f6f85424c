"""`TalkingTrainer`: transformers' Trainer, whose model talks to a teacher while it is trained.

    trainer = TalkingTrainer(model=model, args=args, train_dataset=data, teacher=address, talking=arguments)

During `train()` the losses that need the teacher are a submodule of the model, and hooks compute them within
the model's own forward pass. So optimizers, accelerate, data-parallel wrappers and checkpoints see their
parameters like any others. Outside of `train()` the model is as it was given.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from transformers import Trainer

from student_client.advice import WaitingAdvice
from student_client.config import LossWeights, TalkConfig, TeacherConfig
from student_client.connecting import connect
from student_client.talk_config import check_together
from student_client.taps import Taps
from student_client.trainer_hooks import TEACHER_KEY, TalkingHooks, TeacherCollator
from student_client.trainer_pace import TalkingCallback
from student_client.whole_files import whole_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from student_client.talking import TalkingLosses

__all__ = ["TalkingArguments", "TalkingTrainer"]

_SUBMODULE = "talking"
_CODEC_FILE = "talking.safetensors"


class TalkingArguments(BaseModel):
    """What a model talks about, how, and by which losses it learns from that."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lower: str = Field(description="Module path of S_lo, the state that is sent.")
    upper: str = Field(description="Module path of S_hi, which the reply meets.")
    mask: str | None = Field(
        default="attention_mask", description="The model's input that marks valid positions; null: all."
    )
    losses: LossWeights = Field(
        default_factory=lambda: LossWeights(interact=1.0),
        description="Weights; `task` is of the model's loss.",
    )
    talk: TalkConfig = Field(default_factory=TalkConfig, description="How the model talks.")
    teacher_inputs: str | tuple[str, ...] = Field(
        default="text",
        description="The data set's column of texts that the teacher reads, or the names of tensors.",
    )
    student_dim: int | None = Field(
        default=None, ge=1, description="Width of the states; null: the model's `config.hidden_size`."
    )
    tenant: str = Field(default="", description="The team; empty: the run's name.")


class TalkingTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed
    """Trains a model that talks to a teacher; all other arguments are those of `transformers.Trainer`.

    Args:
        model: with a loss of its own; `TrainingArguments` and all else as ever.
        teacher: its address, or a `TeacherConfig`.
        talking: what is talked about.
        **arguments: of `transformers.Trainer`.

    Raises:
        ValueError: an argument does not fit the others, or the model has no such module.
        TeacherError: the teacher does not say what it is.
    """

    def __init__(
        self,
        model: nn.Module,
        *arguments: Any,
        teacher: str | TeacherConfig,
        talking: TalkingArguments,
        **named: Any,
    ) -> None:
        super().__init__(model, *arguments, **named)
        self.talking_arguments = talking
        _check_arguments(self)
        if isinstance(teacher, str):
            teacher = TeacherConfig(address=teacher)
        self._taps = Taps(model, {"lower": talking.lower, "upper": talking.upper})
        self.talking: TalkingLosses = connect(
            teacher,
            talking.losses,
            talking.talk,
            student_dim=talking.student_dim or _hidden_size(model),
            taps=self._taps,
            tenant=talking.tenant or self.args.run_name or "",
        )
        self._hooks = TalkingHooks(self.talking, self._taps, talking.losses, talking.mask)
        self.data_collator: Any = TeacherCollator(self.data_collator, talking.teacher_inputs)
        self._times = TalkingCallback(
            self.talking.talk, WaitingAdvice(teacher.address, talking.talk, reads_ahead=False)
        )
        self.add_callback(self._times)

    def train(self, *arguments: Any, **named: Any) -> Any:
        """Trains; see `transformers.Trainer.train`.

        Raises:
            ValueError: there is an optimizer already, without the codec's parameters.
            TeacherError: the conversation failed; see `student_client.errors`.
        """
        self.talking.to(self.args.device)
        self._check_optimizer()
        self.model.add_module(_SUBMODULE, self.talking)
        try:
            with self._hooks.on(self.model):
                return super().train(*arguments, **named)
        finally:
            self.model._modules.pop(_SUBMODULE, None)  # noqa: SLF001 - as `delattr`, but never fails
            self.talking.talk.close()

    def _check_optimizer(self) -> None:
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        held = {id(parameter) for group in groups for parameter in group["params"]}
        if groups and not held.issuperset(map(id, self.talking.parameters())):
            raise ValueError(
                "optimizers: got an optimizer without the codec's parameters, expected none; "
                "optimizer_cls_and_kwargs, or args.optim, says which is built"
            )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 - as in Trainer
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Adds the losses that need the teacher, where the model is trained."""
        # `training_step` takes a loss that was told of all parts' labels for a share of the whole already.
        of_all_parts = num_items_in_batch is not None and self.model_accepts_loss_kwargs
        is_mean = of_all_parts and self._is_mean_of_rows(inputs)
        loss, outputs = super().compute_loss(
            model,
            inputs,
            return_outputs=True,
            num_items_in_batch=None if is_mean else num_items_in_batch,
        )
        num_parts = self.current_gradient_accumulation_steps
        if is_mean:
            loss = loss / num_parts
        extra = outputs.get("talking_loss") if isinstance(outputs, dict) else None
        if extra is not None:
            if of_all_parts or self.compute_loss_func is not None:
                extra = extra / num_parts  # ours is a mean over this part
            loss = self.talking_arguments.losses.task * loss + extra
        return (loss, outputs) if return_outputs else loss

    def _is_mean_of_rows(self, inputs: dict[str, Any]) -> bool:
        """Whether the model's loss is a mean over this part, whatever it is told of the number of labels.

        Such are the losses of transformers' models for one label a row, or several numbers. Trainer adds them
        up over parts and processes all the same: that would weigh the task more than what is said of it.
        """
        labels = inputs.get("labels")
        of_the_model = self.compute_loss_func is None and self.label_smoother is None
        says_so = getattr(self.accelerator.unwrap_model(self.model), "accepts_loss_kwargs", False)
        if not of_the_model or says_so or labels is None:
            return False
        is_of_rows: bool = labels.ndim < 2 or labels.is_floating_point()  # noqa: PLR2004 - several numbers a row
        return is_of_rows

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs the parts of the training loss too, `loss_interact` and so on, and those of a step's time.

        To what Trainer logs itself, on all processes; what others log stays as it is.
        """
        if "loss" in logs and start_time is not None:
            logs.update(self._hooks.means())
            logs.update(self._times.logs(self._mean))
        super().log(logs, start_time)

    def _mean(self, number: float) -> float:
        if self.args.world_size == 1:
            return number
        return float(self.accelerator.gather(torch.tensor([number], device=self.args.device)).mean())

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        if not self.model.training:
            prepared.pop(TEACHER_KEY, None)  # the student is alone
        elif TEACHER_KEY not in prepared:
            raise ValueError(
                f"talking.teacher_inputs: got {self.talking_arguments.teacher_inputs!r}, which the data set "
                f"lacks, expected columns of it (the model reads {sorted(prepared)})"
            )
        return prepared

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        wanted = self.talking_arguments.teacher_inputs
        names = [wanted] if isinstance(wanted, str) else wanted
        self._signature_columns += [name for name in names if name not in self._signature_columns]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Writes the student alone, and the codec in a file beside it."""
        if state_dict is not None:
            state_dict = {
                name: value for name, value in state_dict.items() if not name.startswith(_SUBMODULE + ".")
            }
        with self._alone():
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            with whole_file(Path(output_dir or self.args.output_dir) / _CODEC_FILE) as path:
                save_model(self.talking, str(path), {"teacher": self.talking.teacher_fingerprint})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with self._alone():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_codec(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        with self._alone():
            super()._load_best_model()
        self._load_codec(self.state.best_model_checkpoint)

    def _load_codec(self, folder: str) -> None:
        path = Path(folder) / _CODEC_FILE
        if not path.exists():
            raise ValueError(f"{path}: got nothing there, expected the codec of a TalkingTrainer")
        with safe_open(path, "pt") as file:
            teacher = (file.metadata() or {}).get("teacher")
        if teacher != self.talking.teacher_fingerprint:
            raise ValueError(f"{path}: got the codec for another teacher, expected one for this teacher")
        load_model(self.talking, str(path))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Takes the submodule out of the model while open."""
        kept = self.model._modules.pop(_SUBMODULE, None)  # noqa: SLF001
        try:
            yield
        finally:
            if kept is not None:
                self.model.add_module(_SUBMODULE, kept)


def _check_arguments(trainer: TalkingTrainer) -> None:
    """Refuses what would not work, and sets what has to be set for it to work."""
    args = trainer.args
    check_together(trainer.talking_arguments.losses, trainer.talking_arguments.talk)
    if args.n_gpu > 1:
        raise ValueError(
            f"got {args.n_gpu} GPUs in one process, expected one; start a process for each with torchrun, or "
            "set CUDA_VISIBLE_DEVICES"
        )
    if trainer.model_init is not None:
        raise ValueError("model_init: got a function, expected `model`: the codec belongs to one model")
    if args.gradient_checkpointing:
        # Newer releases of transformers call it activation checkpointing, and mirror the old name.
        is_new = hasattr(args, "activation_checkpointing")
        field = f"{'activation' if is_new else 'gradient'}_checkpointing_kwargs"
        kwargs = dict(getattr(args, field) or {})
        if kwargs.setdefault("use_reentrant", False):
            raise ValueError(
                f"{field}: got use_reentrant true, expected false: states would have no graph to send "
                "gradients back through"
            )
        setattr(args, field, kwargs)
    own_loss = trainer.compute_loss_func is None and trainer.label_smoother is None
    if trainer.talking_arguments.losses.grounded and not own_loss:
        raise ValueError(
            "losses.grounded: got a weight with compute_loss_func or label smoothing, expected the loss of "
            "the model itself"
        )
    if trainer.talking_arguments.talk.swap_probability:
        raise ValueError(
            "talk.swap_probability: expected 0: the task's loss is Trainer's; `preceptor train` swaps"
        )
    source = trainer.talking_arguments.losses.kd_source
    if source != "head":
        raise ValueError(f"losses.kd_source: got {source}, expected head: `preceptor train` has the others")
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = True  # a codec half may be left out by the losses


def _hidden_size(model: nn.Module) -> int:
    size = getattr(getattr(model, "config", None), "hidden_size", None)
    if not isinstance(size, int):
        raise ValueError(  # noqa: TRY004 - a wrong config
            "talking.student_dim: got null, expected the width of the states: model.config has no hidden_size"
        )
    return size
