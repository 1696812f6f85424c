"""The codec's spec, its modules, `resample` and the distance of states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from preceptor.codec import CodecKind, CodecSpec, Decoder, Encoder, TeacherCodec, resample
from preceptor.distance import normalise, state_distance
from preceptor.terms import OBSERVATION_KINDS, READINGS, ObservationKind, Reading
from preceptor.v1 import teacher_pb2 as pb

LENGTHS = st.integers(1, 9)
SPECS = st.one_of(
    st.builds(CodecSpec, message_dim=LENGTHS, message_len=st.none() | LENGTHS),
    st.builds(
        CodecSpec,
        kind=st.just(CodecKind.TWO_LAYER),
        message_dim=LENGTHS,
        message_len=st.none() | LENGTHS,
        hidden_dim=LENGTHS,
    ),
)


@st.composite
def masks(draw: st.DrawFn, batch: int = 2) -> Tensor:
    """Draws a mask with at least one valid position a row."""
    length = draw(LENGTHS)
    rows = [draw(st.lists(st.booleans(), min_size=length, max_size=length)) for _ in range(batch)]
    mask = torch.tensor(rows, dtype=torch.bool)
    mask[:, draw(st.integers(0, length - 1))] = True
    return mask


def _ones(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.bool)


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"message_dim": 0}, "message_dim"),
        ({"message_len": 0}, "message_len"),
        ({"hidden_dim": 4}, "hidden_dim: got 4 for kind 'linear', expected a width for"),
        ({"kind": "two_layer"}, "hidden_dim: got None for kind 'two_layer', expected a width for"),
        ({"kind": "two_layer", "hidden_dim": 0}, "hidden_dim"),
        ({"kind": "deep"}, "kind"),
        ({"width": 3}, "width"),
    ],
)
def test_a_spec_out_of_range_is_refused(fields: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ValueError, match=fragment):
        CodecSpec(**fields)


@given(SPECS)
def test_a_spec_survives_the_protocol(spec: CodecSpec) -> None:
    message = pb.CodecSpec.FromString(spec.to_proto().SerializeToString())
    assert CodecSpec.from_proto(message) == spec


@pytest.mark.parametrize(
    ("message", "fragment"),
    [
        (pb.CodecSpec(message_dim=3), "codec.kind: got 0, expected one of CODEC_KIND_LINEAR, "),
        (pb.CodecSpec(kind=9, message_dim=3), "codec.kind: got 9, expected"),  # type: ignore[arg-type]
        (pb.CodecSpec(kind=pb.CODEC_KIND_LINEAR), "message_dim"),
        (pb.CodecSpec(kind=pb.CODEC_KIND_TWO_LAYER, message_dim=3), "hidden_dim: got None"),
    ],
)
def test_a_protocol_spec_out_of_range_is_refused(message: pb.CodecSpec, fragment: str) -> None:
    with pytest.raises(ValueError, match=fragment):
        CodecSpec.from_proto(message)


@settings(max_examples=20)
@given(SPECS, LENGTHS)
def test_shapes_are_those_of_the_modules(spec: CodecSpec, teacher_dim: int) -> None:
    codec = TeacherCodec(spec, teacher_dim)
    expected = {name: parameter.shape for name, parameter in codec.named_parameters()}
    assert TeacherCodec.shapes(spec, teacher_dim) == expected
    assert ("decoder.position" in expected) == (spec.message_len is not None)


def test_shapes_of_a_codec_larger_than_memory_cost_nothing() -> None:
    spec = CodecSpec(kind="two_layer", message_dim=4096, message_len=512, hidden_dim=2**32 - 1)
    assert TeacherCodec.shapes(spec, 4096)["encoder.body.0.weight"] == (2**32 - 1, 4096)


@settings(max_examples=20)
@given(SPECS, masks(), st.integers(1, 6))
def test_encoder_and_decoder_give_the_documented_shapes(spec: CodecSpec, mask: Tensor, width: int) -> None:
    message_mask = mask if spec.message_len is None else _ones(2, spec.message_len)
    message = Encoder(spec, width)(torch.randn(*mask.shape, width), mask, message_mask)
    assert message.shape == (*message_mask.shape, spec.message_dim)
    assert Decoder(spec, width)(message).shape == (*message_mask.shape, width)


def test_a_decoder_of_fixed_length_tells_positions_apart() -> None:
    decoded = Decoder(CodecSpec(message_dim=3, message_len=2), 4)(torch.ones(1, 2, 3))
    assert not torch.equal(decoded[:, 0], decoded[:, 1])
    decoded = Decoder(CodecSpec(message_dim=3), 4)(torch.ones(1, 2, 3))
    torch.testing.assert_close(decoded[:, 0], decoded[:, 1])


@given(masks())
def test_equal_masks_change_nothing(mask: Tensor) -> None:
    states = torch.randn(*mask.shape, 3)
    assert torch.equal(resample(states, mask, mask.clone()), states)


@given(masks(), st.data())
def test_equal_counts_keep_the_valid_states_in_order(mask: Tensor, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(mask.shape[1])))
    new_mask = mask[:, order]
    states = torch.randn(*mask.shape, 3)
    torch.testing.assert_close(resample(states, mask, new_mask)[new_mask], states[mask])


@given(masks())
def test_one_position_is_the_masked_mean(mask: Tensor) -> None:
    states = torch.randn(*mask.shape, 3)
    mean = (states * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
    torch.testing.assert_close(resample(states, mask, _ones(2, 1)), mean)


@given(masks())
def test_a_single_state_is_repeated(new_mask: Tensor) -> None:
    states = torch.randn(2, 1, 3)
    expected = states * new_mask[..., None]
    torch.testing.assert_close(resample(states, _ones(2, 1), new_mask), expected)


@given(masks(), masks())
def test_a_constant_sequence_stays_constant_and_padding_never_counts(mask: Tensor, new_mask: Tensor) -> None:
    states = torch.full((*mask.shape, 2), 7.0).masked_fill(~mask[..., None], 1e6)
    given_zeros = torch.equal(mask, new_mask) if mask.shape == new_mask.shape else False
    result = resample(states, mask, new_mask)
    torch.testing.assert_close(result[new_mask], torch.full_like(result[new_mask], 7.0))
    assert given_zeros or result[~new_mask].eq(0).all()


def test_positions_share_the_source_by_area() -> None:
    states = torch.tensor([[[0.0], [3.0], [6.0]]])
    torch.testing.assert_close(resample(states, _ones(1, 3), _ones(1, 2)), torch.tensor([[[1.0], [5.0]]]))


@pytest.mark.parametrize("new_length", [1, 2, 3, 5])
def test_resample_has_the_right_gradient(new_length: int) -> None:
    states = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert torch.autograd.gradcheck(lambda each: resample(each, mask, _ones(2, new_length)), (states,))


@given(st.floats(0.01, 1e4), st.floats(0.01, 1e4))
def test_the_distance_ignores_scale(first: float, second: float) -> None:
    states, others = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    expected = state_distance(states, others, _ones(2, 3))
    torch.testing.assert_close(
        state_distance(states * first, others * second, _ones(2, 3)), expected, rtol=0.05, atol=0.01
    )


def test_the_distance_lies_between_same_and_opposite_directions() -> None:
    states = torch.randn(8, 3, 4)
    mask = _ones(8, 3)
    torch.testing.assert_close(state_distance(states, 3 * states, mask), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        state_distance(states, -states, mask), torch.full((8,), 4.0), rtol=1e-3, atol=0
    )
    between = state_distance(states, torch.randn(8, 3, 4), mask)
    assert between.gt(0).all()
    assert between.lt(4).all()


def test_the_distance_is_the_mean_over_valid_positions() -> None:
    states, others = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    scaled = [each / each.square().mean(-1, keepdim=True).sqrt() for each in (states, others)]
    error = (scaled[0] - scaled[1]).square().mean(-1)
    expected = torch.stack([(error[0, 0] + error[0, 2]) / 2, torch.tensor(0.0)])
    torch.testing.assert_close(state_distance(states, others, mask), expected, rtol=1e-4, atol=1e-5)


def test_states_of_zero_have_a_finite_gradient() -> None:
    states = torch.zeros(1, 2, 3, requires_grad=True)
    torch.autograd.backward(normalise(states).sum())
    assert states.grad is not None
    assert torch.isfinite(states.grad).all()


def test_every_term_of_the_protocol_has_a_name() -> None:
    assert set(READINGS) == set(pb.Reading.values()) - {pb.READING_UNSPECIFIED}
    assert set(OBSERVATION_KINDS) == set(pb.ObservationKind.values()) - {pb.OBSERVATION_KIND_UNSPECIFIED}
    assert {f"READING_{reading.name}": number for number, reading in READINGS.items()} == {
        name: number for name, number in pb.Reading.items() if number
    }
    assert set(READINGS.values()) == set(Reading)
    needing = {kind for kind in ObservationKind if kind.needs_codec}
    assert needing == {"lower_message", "upper_message", "state_consistency"}
