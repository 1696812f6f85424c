"""Hand-written frames of the protocol for the toy teacher, and a desk that a conversation answers at."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import torch

from preceptor import wire
from preceptor.codec import CodecSpec, TeacherCodec
from preceptor.terms import OBSERVATION_KIND_NUMBERS, READING_NUMBERS, ObservationKind, Reading
from preceptor.v1 import teacher_pb2 as pb
from services.teacher.config import LimitsConfig
from services.teacher.conversation import Conversation
from tests.toy import HIDDEN, NUM_IDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Self

    from torch import Tensor

    from preceptor.v1 import tensor_pb2 as tensors
    from services.teacher.engine import Engine
    from services.teacher.kept import KeptBytes

__all__ = [
    "MESSAGE_DIM",
    "MESSAGE_LEN",
    "SPEC",
    "Desk",
    "OtherDesk",
    "backward",
    "close",
    "codec_state",
    "exchange",
    "ids",
    "message",
    "observe",
    "opening",
    "set_codec",
]

MESSAGE_DIM = 3
MESSAGE_LEN = 2
SPEC = CodecSpec(message_dim=MESSAGE_DIM, message_len=MESSAGE_LEN)

Named = dict[str, "Tensor"]


def ids(batch: int = 2, length: int = 4) -> Tensor:
    return (torch.arange(batch * length) * 7 % NUM_IDS).reshape(batch, length)


def message(batch: int = 2, length: int = MESSAGE_LEN, seed: int = 0) -> Tensor:
    return torch.randn(batch, length, MESSAGE_DIM, generator=torch.Generator().manual_seed(seed))


def codec_state(spec: CodecSpec = SPEC, seed: int = 0) -> Named:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return dict(TeacherCodec(spec, HIDDEN).state_dict())


def opening(
    spec: CodecSpec | pb.CodecSpec = SPEC,
    reading: Reading | int = Reading.REPLACE,
    **fields: Any,
) -> pb.ConverseRequest:
    codec = spec.to_proto() if isinstance(spec, CodecSpec) else spec
    number: Any = READING_NUMBERS[reading] if isinstance(reading, Reading) else reading
    return pb.ConverseRequest(open=pb.Open(codec=codec, reading=number, **fields))


def set_codec(
    version: int = 1, state: Named | Iterable[tensors.NamedTensor] | None = None, *, complete: bool = True
) -> pb.ConverseRequest:
    if state is None:
        state = codec_state()
    named = wire.encode_named(state) if isinstance(state, dict) else list(state)
    return pb.ConverseRequest(set_codec=pb.SetCodec(version=version, tensors=named, complete=complete))


def _inputs(inputs: Named | list[str] | None) -> pb.Inputs | None:
    if isinstance(inputs, dict):
        return pb.Inputs(tensors=wire.encode_named(inputs))
    return None if inputs is None else pb.Inputs(texts=inputs)


def _encoded(tensor: Tensor | tensors.Tensor | None) -> tensors.Tensor | None:
    return wire.encode(tensor) if isinstance(tensor, torch.Tensor) else tensor


def exchange(
    turn: int = 1,
    content: Tensor | tensors.Tensor | None = None,
    *,
    codec_version: int = 1,
    mask: Tensor | tensors.Tensor | None = None,
    inputs: Named | list[str] | None = None,
    wants_gradient: bool = True,
) -> pb.ConverseRequest:
    return pb.ConverseRequest(
        exchange=pb.Exchange(
            turn=turn,
            codec_version=codec_version,
            message=_encoded(message() if content is None else content),
            mask=_encoded(mask),
            inputs=_inputs(inputs),
            wants_gradient=wants_gradient,
        )
    )


def observe(
    turn: int = 1,
    kinds: Iterable[ObservationKind | int] = (ObservationKind.LOWER_MESSAGE,),
    *,
    inputs: Named | list[str] | None = None,
    mask: Tensor | None = None,
    codec_version: int = 1,
    wants_gradient: bool = True,
    ahead: bool = False,
) -> pb.ConverseRequest:
    numbers: Any = [
        OBSERVATION_KIND_NUMBERS[kind] if isinstance(kind, ObservationKind) else kind for kind in kinds
    ]
    return pb.ConverseRequest(
        observe=pb.Observe(
            turn=turn,
            codec_version=codec_version,
            inputs=_inputs({"ids": ids()} if inputs is None else inputs),
            kinds=numbers,
            mask=_encoded(mask),
            wants_gradient=wants_gradient,
            ahead=ahead,
        )
    )


def backward(
    turn: int = 1, gradients: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]] | None = None
) -> pb.ConverseRequest:
    """By default the gradient of a reply's sum."""
    named = {"reply": torch.ones(2, MESSAGE_LEN, MESSAGE_DIM)} if gradients is None else gradients
    return pb.ConverseRequest(backward=pb.Backward(turn=turn, gradients=wire.encode_named(named)))


def close() -> pb.ConverseRequest:
    return pb.ConverseRequest(close=pb.Close())


class Desk:
    """A conversation without gRPC: frames in, answers out."""

    name = "desk"
    kept: KeptBytes | None = None

    def __init__(self, engine: Engine, **limits: int) -> None:
        self._runner = asyncio.Runner()
        self._answers: list[pb.ConverseResponse] = []
        self.conversation = Conversation(
            self.name,
            engine=engine,
            limits=LimitsConfig(**limits),
            default_split_layer=1,
            send=self._answers.append,
            kept=self.kept,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    def say(
        self, *frames: pb.ConverseRequest, then: Callable[[], None] = lambda: None
    ) -> list[pb.ConverseResponse]:
        """Hands frames in together, calls `then`, and returns the answers once all turns are settled."""

        async def say() -> None:
            for frame in frames:
                self.conversation.receive(frame)
            then()
            async with asyncio.timeout(30):
                await self.conversation.settle()

        self._runner.run(say())
        answers, self._answers[:] = list(self._answers), []
        return answers

    def ask(self, frame: pb.ConverseRequest) -> pb.ConverseResponse:
        """Hands one frame in and returns its only answer."""
        (answer,) = self.say(frame)
        return answer


class OtherDesk(Desk):
    """Another conversation of the same engine."""

    name = "other desk"
