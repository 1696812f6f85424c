"""One pass for many turns gives each of them what it would get alone, forward and backward."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preceptor.codec import CodecSpec
from preceptor.terms import Reading
from services.teacher.own_reading import LOWER, Reader, ReadingRequest
from services.teacher.passes import ExchangePass, Pass, exchange_pass, signature
from services.teacher.teaching import Teaching
from services.teacher.transfers import Transfers
from tests.toy_turns import (
    FAMILIES,
    FREE,
    alone,
    assert_close,
    assert_gradients,
    codec_of,
    exchange_turn,
    inputs_of,
    ragged,
    teacher_of,
)

if TYPE_CHECKING:
    from services.teacher.work import ExchangeTurn

SPECS = (
    FREE,
    CodecSpec(message_dim=3, message_len=3),
    CodecSpec(kind="two_layer", message_dim=2, hidden_dim=5),
    CodecSpec(kind="two_layer", message_dim=3, hidden_dim=4, message_len=3),
)


def _pass(
    kind: str, turns: list[ExchangeTurn], *, with_graph: bool = True, in_buckets: bool = False
) -> ExchangePass:
    teacher = teacher_of(kind)
    reader = Reader(teacher, None, 10_000)
    own = [
        None
        if turn.inputs is None
        else reader.read([ReadingRequest(turn.inputs, frozenset({LOWER}), turn.split_layer, "")])[0]
        for turn in turns
    ]
    transfers = Transfers(teacher.device)
    return exchange_pass(teacher, turns, own, transfers, with_graph=with_graph, in_buckets=in_buckets)


def _grads(turns: list[ExchangeTurn]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(turn.message.shape, generator=generator) for turn in turns]


def _check(
    kind: str, turns: list[ExchangeTurn], asked: set[int] | None = None, *, in_buckets: bool = False
) -> None:
    """Holds a pass against `one_turn`, with gradients of some of its turns (None: of all)."""
    done = _pass(kind, turns, in_buckets=in_buckets)
    grads = _grads(turns)
    indices = range(len(turns)) if asked is None else sorted(asked)
    got = done.backward({turns[index]: {"reply": grads[index]} for index in indices})
    assert got.keys() == {turns[index] for index in indices}
    for index, turn in enumerate(turns):
        reply, message, codec = alone(teacher_of(kind), turn, grads[index])
        assert_close(done.values(turn)["reply"].detach(), reply)
        if index in indices:
            assert_gradients(got[turn], message, codec)


@pytest.mark.parametrize("reading", Reading)
@pytest.mark.parametrize("kind", FAMILIES)
def test_turns_of_one_shape_are_computed_as_if_alone(kind: str, reading: Reading) -> None:
    teacher = teacher_of(kind)
    _check(kind, [exchange_turn(teacher, (2, 3), reading, seed=seed) for seed in range(4)])


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("reading", Reading)
def test_codecs_of_every_spec_are_computed_together(spec: CodecSpec, reading: Reading) -> None:
    teacher = teacher_of("encoder")
    codecs = [codec_of(teacher, spec, seed) for seed in range(3)]
    _check("encoder", [exchange_turn(teacher, (2, 3), reading, codec=codec) for codec in codecs])


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_specs_readings_rows_and_lengths_mix(kind: str) -> None:
    teacher = teacher_of(kind)
    turns = [
        exchange_turn(teacher, (1 + seed % 3, 3), reading, codec=codec_of(teacher, spec, seed), seed=seed)
        for seed, (spec, reading) in enumerate(itertools.product(SPECS, Reading))
    ]
    turns += [exchange_turn(teacher, (2, length), seed=length) for length in (1, 2, 4)]
    _check(kind, turns)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("reading", Reading)
def test_ragged_messages_and_inputs_see_no_padding(kind: str, reading: Reading) -> None:
    teacher = teacher_of(kind)
    turns = []
    for seed, (lengths, own) in enumerate([((4, 2), (5, 1)), ((1, 4), (2, 7)), ((3, 3), (6, 6))]):
        inputs = None if reading is Reading.REPLACE else inputs_of(teacher, own, seed=seed)
        turn = exchange_turn(teacher, (2, 4), reading, mask=ragged(lengths, 4), inputs=inputs, seed=seed)
        turns.append(turn)
    _check(kind, turns)
    for turn in turns:
        reply = _pass(kind, [turn], with_graph=False).values(turn)["reply"]
        assert not reply[~turn.mask].any()


@pytest.mark.parametrize("reading", Reading)
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_padding_to_buckets_changes_nothing(kind: str, reading: Reading) -> None:
    teacher = teacher_of(kind)
    turns = [
        exchange_turn(
            teacher, (rows, 5), reading, mask=ragged([1 + row for row in range(rows)], 5), seed=rows
        )
        for rows in (1, 3, 5)
    ]
    _check(kind, turns, in_buckets=True)
    _check(kind, turns[:1], in_buckets=True)


def test_a_teacher_that_sees_padding_is_shown_none() -> None:
    teacher = teacher_of("module")
    turn = exchange_turn(teacher, (3, 5))
    (done,), _ = Teaching(teacher, None, in_buckets=True).forward([turn], with_graph=False)
    assert_close(done.values(turn)["reply"], alone(teacher, turn)[0])


def test_one_codec_may_serve_several_turns_of_a_pass() -> None:
    teacher = teacher_of("encoder")
    codec = codec_of(teacher)
    turns = [exchange_turn(teacher, (2, 2), codec=codec, seed=seed) for seed in range(3)]
    _check("encoder", turns)
    same = exchange_turn(teacher)
    twice = _pass("encoder", [same, same])
    (grad,) = _grads([same])
    got = twice.backward({same: {"reply": grad}})
    _, message, named = alone(teacher, same, grad)
    assert_gradients(got[same], message, named)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_one_codec_may_serve_turns_of_several_shapes_and_readings(spec: CodecSpec) -> None:
    teacher = teacher_of("encoder")
    codec = codec_of(teacher, spec)
    shapes = [(2, 3), (1, 3), (2, 3) if spec.message_len else (2, 5)]
    turns = [
        exchange_turn(teacher, shape, reading, codec=codec, seed=seed)
        for seed, (shape, reading) in enumerate(zip(shapes, Reading, strict=True))
    ]
    _check("encoder", turns)
    _check("encoder", [*turns, turns[0]][1:])


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("asked", [{0}, {1}, {2, 3}, {0, 1, 2}, {4}])
def test_gradients_of_some_turns_do_not_need_the_others(kind: str, asked: set[int]) -> None:
    teacher = teacher_of(kind)
    turns = [exchange_turn(teacher, (2, 2), seed=seed) for seed in range(3)]
    turns.append(exchange_turn(teacher, (1, 2), seed=3))
    turns.append(exchange_turn(teacher, (2, 2), codec=codec_of(teacher, SPECS[2]), seed=4))
    _check(kind, turns, asked)


def test_gradients_may_come_in_half_precision() -> None:
    turn = exchange_turn(teacher_of("encoder"))
    grad = torch.ones(turn.message.shape)
    whole, half = (
        _pass("encoder", [turn]).backward({turn: {"reply": grad.to(dtype)}})[turn]
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert_gradients(half, whole.message, whole.codec)


def test_gradients_of_nothing_are_zero() -> None:
    turn = exchange_turn(teacher_of("encoder"))
    gradients = _pass("encoder", [turn]).backward({turn: {}})[turn]
    assert gradients.message is not None
    assert not gradients.message.any()
    assert not any(gradient.any() for gradient in gradients.codec.values())


@pytest.mark.parametrize("split_layer", [0, 3])
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_talking_layer_may_be_the_first_or_the_last(kind: str, split_layer: int) -> None:
    teacher = teacher_of(kind)
    turns = [
        exchange_turn(teacher, (2, 2), Reading.ADD, seed=seed, split_layer=split_layer) for seed in range(2)
    ]
    _check(kind, turns)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("kind", FAMILIES)
def test_what_one_turn_holds_never_reaches_another(kind: str, bad: float) -> None:
    teacher = teacher_of(kind)
    good = [exchange_turn(teacher, (2, 2), reading, seed=3) for reading in Reading]
    shapes = [(2, 2)] if kind == "module" else [(2, 2), (1, 2), (2, 1)]
    poison = [
        exchange_turn(teacher, shape, turn.reading, seed=8, message=torch.full((*shape, 3), bad))
        for turn in good
        for shape in shapes
    ]
    grads = dict(zip(good, _grads(good), strict=True))
    for turn in good:
        company = [each for each in poison if kind != "module" or each.reading is turn.reading]
        done = _pass(kind, [*company, turn, *company])
        asked = {each: {"reply": torch.full(each.message.shape, 1e30)} for each in company}
        asked[turn] = {"reply": grads[turn]}
        got = done.backward(dict(asked.items()))
        reply, message, codec = alone(teacher, turn, grads[turn])
        assert_close(done.values(turn)["reply"].detach(), reply)
        assert_gradients(got[turn], message, codec)


def test_a_pass_without_a_graph_gives_the_same_replies() -> None:
    teacher = teacher_of("encoder")
    turns = [exchange_turn(teacher, seed=seed) for seed in range(3)]
    for turn in turns:
        bare = _pass("encoder", turns, with_graph=False).values(turn)["reply"]
        assert not bare.requires_grad
        assert_close(bare, _pass("encoder", turns).values(turn)["reply"].detach())


def test_turns_that_want_no_gradient_have_no_graph() -> None:
    teacher = teacher_of("encoder")
    turns = [exchange_turn(teacher, seed=seed, wants_gradient=False) for seed in range(2)]
    done = _pass("encoder", turns, with_graph=False)
    assert not any(done.values(turn)["reply"].requires_grad for turn in turns)


turn_shapes = st.tuples(
    st.integers(1, 3),
    st.integers(1, 5),
    st.sampled_from(list(Reading)),
    st.sampled_from([SPECS[0], SPECS[2]]),
)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@settings(max_examples=20)
@given(drawn=st.lists(turn_shapes, min_size=1, max_size=5), data=st.data())
def test_whatever_shares_a_pass_is_computed_as_if_alone(
    kind: str, drawn: list[tuple[int, int, Reading, CodecSpec]], data: st.DataObject
) -> None:
    teacher = teacher_of(kind)
    turns = []
    for seed, (rows, length, reading, spec) in enumerate(drawn):
        lengths = data.draw(st.lists(st.integers(1, length), min_size=rows, max_size=rows))
        turn = exchange_turn(
            teacher,
            (rows, length),
            reading,
            codec=codec_of(teacher, spec, seed),
            mask=ragged(lengths, length),
            seed=seed,
        )
        turns.append(turn)
    _check(kind, turns, set(data.draw(st.sets(st.integers(0, len(turns) - 1), min_size=1))))


def test_the_signature_tells_graphs_of_other_sizes_apart() -> None:
    teacher = teacher_of("encoder")
    turns = [exchange_turn(teacher, (2, 2), seed=seed) for seed in range(2)]
    assert signature(turns) == signature(turns[::-1])
    others = [
        exchange_turn(teacher, (2, 3)),
        exchange_turn(teacher, (2, 2), Reading.BESIDE),
        exchange_turn(teacher, (2, 2), Reading.ADD),
        exchange_turn(teacher, (2, 2), codec=codec_of(teacher, SPECS[2])),
    ]
    different = {signature([turns[0], other]) for other in others}
    different |= {signature(turns), signature(turns[:1]), signature([*turns, turns[0]])}
    assert len(different) == len(others) + 3
    assert signature([exchange_turn(teacher, split_layer=2)]) != signature([exchange_turn(teacher)])


def test_a_pass_is_abstract() -> None:
    turn = exchange_turn(teacher_of("encoder"))
    with pytest.raises(NotImplementedError):
        Pass([turn]).values(turn)
    with pytest.raises(NotImplementedError):
        Pass([turn]).backward({})
