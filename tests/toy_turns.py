"""Turns without a protocol, for teachers of every family, and what each must get."""

from __future__ import annotations

import itertools
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from preceptor.codec import CodecSpec, TeacherCodec
from preceptor.terms import ObservationKind, Reading
from services.teacher.families import load_teacher
from services.teacher.work import ExchangeTurn, ObserveTurn, Speaker
from tests.one_turn import interpret
from tests.tiny_models import load_from, save_tiny
from tests.toy import toy_config

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from services.teacher.families.base import Teacher
    from services.teacher.passes import Gradients
    from services.teacher.work import GradientsResult

__all__ = [
    "FAMILIES",
    "FREE",
    "alone",
    "assert_close",
    "assert_gradients",
    "check_gradients",
    "codec_of",
    "exchange_turn",
    "grad_of",
    "inputs_of",
    "observe_turn",
    "ragged",
    "speaker_of",
    "teacher_of",
]

FAMILIES = ("encoder", "decoder", "module")
FREE = CodecSpec(message_dim=3)
_NUM_IDS = 32

_names = (f"conversation-{number}" for number in itertools.count())


@cache
def teacher_of(kind: str) -> Teacher:
    """A tiny teacher of a family; the module is the toy, whose blocks see padding."""
    with tempfile.TemporaryDirectory() as name, torch.random.fork_rng():
        folder = Path(name)
        if kind == "module":
            return load_teacher(toy_config(folder), torch.device("cpu"), torch.float32)
        save_tiny(folder, kind)
        return load_from(folder, "decoder" if kind == "decoder" else "encoder")


def codec_of(teacher: Teacher, spec: CodecSpec = FREE, seed: int = 0) -> TeacherCodec:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TeacherCodec(spec, teacher.facts.hidden_size)


def speaker_of(tenant: str = "tenant", conversation: str = "", *, deterministic: bool = False) -> Speaker:
    """A speaker in a conversation of its own, if none is named."""
    return Speaker(tenant, conversation or next(_names), deterministic)


def ragged(lengths: Sequence[int], width: int) -> Tensor:
    """The mask of rows that are padded on the right, [B, width]."""
    return torch.arange(width)[None] < torch.tensor(lengths)[:, None]


def inputs_of(teacher: Teacher, lengths: Sequence[int], width: int = 0, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of rows with so many ids, padded to `width`; a module's rows are all as long as the longest."""
    width = width or max(lengths)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, _NUM_IDS, (len(lengths), width), generator=generator)
    if teacher.facts.family == "module":
        return {"ids": ids}
    mask = ragged(lengths, width)
    return {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask}


def exchange_turn(
    teacher: Teacher,
    shape: tuple[int, int] = (2, 2),
    reading: Reading = Reading.REPLACE,
    *,
    codec: TeacherCodec | None = None,
    seed: int = 0,
    **fields: Any,
) -> ExchangeTurn:
    """A turn with a message of B rows and K positions; `fields` replace those of the turn."""
    codec = codec or codec_of(teacher, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    inputs = None
    if reading is not Reading.REPLACE:
        inputs = inputs_of(teacher, [5 - row % 2 for row in range(shape[0])], seed=seed)
    made: dict[str, Any] = {
        "codec": codec,
        "codec_version": 1,
        "message": torch.randn(*shape, codec.spec.message_dim, generator=generator),
        "mask": torch.ones(*shape, dtype=torch.bool),
        "reading": reading,
        "split_layer": 1,
        "inputs": inputs,
        "wants_gradient": True,
        "speaker": speaker_of(),
    }
    return ExchangeTurn(**{**made, **fields})


def observe_turn(
    teacher: Teacher,
    kinds: Sequence[ObservationKind] = (ObservationKind.LOWER_MESSAGE,),
    *,
    lengths: Sequence[int] = (5, 3),
    seed: int = 0,
    **fields: Any,
) -> ObserveTurn:
    needs_codec = any(kind.needs_codec for kind in kinds)
    made: dict[str, Any] = {
        "codec": codec_of(teacher, seed=seed) if needs_codec else None,
        "codec_version": int(needs_codec),
        "inputs": inputs_of(teacher, lengths, seed=seed),
        "kinds": frozenset(kinds),
        "split_layer": 1,
        "message_mask": None,
        "wants_gradient": needs_codec,
        "speaker": speaker_of(),
    }
    return ObserveTurn(**{**made, **fields})


def alone(
    teacher: Teacher, turn: ExchangeTurn, grad_reply: Tensor | None = None
) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    """Interprets a turn by the formulas of `one_turn`: its reply and, with a gradient of it, all others."""
    message = turn.message.clone().requires_grad_()
    reply = interpret(
        teacher,
        turn.codec,
        message,
        turn.mask,
        reading=turn.reading,
        split_layer=turn.split_layer,
        inputs=turn.inputs,
    )
    if grad_reply is None:
        return reply.detach(), None, {}
    named = dict(turn.codec.named_parameters())
    first, *others = torch.autograd.grad(reply, [message, *named.values()], grad_reply, allow_unused=True)
    gradients = {name: grad for name, grad in zip(named, others, strict=True) if grad is not None}
    return reply.detach(), first, gradients


def assert_close(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Checks that the largest difference is small beside the largest value."""
    assert got.shape == expected.shape
    error = float((got - expected).abs().max()) / max(float(expected.abs().max()), 1e-6)
    assert error <= tolerance, f"differs by {error:.3g} (relative)"


def assert_gradients(
    got: Gradients | GradientsResult, message: Tensor | None, codec: Mapping[str, Tensor]
) -> None:
    """Checks the gradients of a turn, all of them."""
    if message is not None:
        assert got.message is not None
        assert_close(got.message, message)
    assert got.codec.keys() == codec.keys()
    for name, gradient in codec.items():
        assert_close(got.codec[name], gradient)


def grad_of(turn: ExchangeTurn, seed: int = 0) -> dict[str, Tensor]:
    """A gradient of a turn's reply."""
    generator = torch.Generator().manual_seed(seed)
    return {"reply": torch.randn(turn.message.shape, generator=generator)}


def check_gradients(teacher: Teacher, turn: ExchangeTurn, got: GradientsResult, seed: int = 0) -> None:
    """Holds what came for `grad_of` the turn against its gradients alone."""
    _, message, codec = alone(teacher, turn, grad_of(turn, seed)["reply"])
    assert_gradients(got, message, codec)
