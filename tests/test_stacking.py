"""Codecs computed as one give what each of them gives, and gradients of each of them."""

from __future__ import annotations

import pytest
import torch

from preceptor.codec import CodecSpec, TeacherCodec
from services.teacher.stacking import StackedCodecs

WIDTH = 8
SPECS = (
    CodecSpec(message_dim=3),
    CodecSpec(message_dim=3, message_len=4),
    CodecSpec(kind="two_layer", message_dim=3, hidden_dim=5),
    CodecSpec(kind="two_layer", message_dim=3, hidden_dim=5, message_len=4),
)


def _codecs(spec: CodecSpec, count: int) -> list[TeacherCodec]:
    return [TeacherCodec(spec, WIDTH) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_stacked_codecs_give_what_each_of_them_gives(spec: CodecSpec, count: int) -> None:
    codecs = _codecs(spec, count)
    stacked = StackedCodecs(codecs, wants_gradient=True)
    message, states = torch.randn(count, 2, 4, 3), torch.randn(count, 2, 4, WIDTH)
    for index, codec in enumerate(codecs):
        torch.testing.assert_close(stacked.decode(message)[index], codec.decoder(message[index]))
        torch.testing.assert_close(stacked.encode(states)[index], codec.encoder.body(states[index]))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_gradients_are_those_of_each_codec(spec: CodecSpec, count: int) -> None:
    codecs = _codecs(spec, count)
    stacked = StackedCodecs(codecs, wants_gradient=True)
    message = torch.randn(count, 2, 4, 3)
    loss = stacked.encode(stacked.decode(message).tanh()).square().sum()
    got = torch.autograd.grad(loss, list(stacked.parameters.values()))
    named = dict(zip(stacked.parameters, got, strict=True))
    for index, codec in enumerate(codecs):
        own = codec.encoder.body(codec.decoder(message[index]).tanh()).square().sum()
        expected = torch.autograd.grad(own, list(codec.parameters()))
        found = stacked.of(index, named)
        assert list(found) == [name for name, _ in codec.named_parameters()]
        for gradient, reference in zip(found.values(), expected, strict=True):
            torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize("count", [1, 3])
def test_only_what_is_stacked_is_copied(count: int) -> None:
    codecs = _codecs(SPECS[0], count)
    stacked = StackedCodecs(codecs, wants_gradient=True)
    for mine, own in zip(stacked.parameters.values(), codecs[0].parameters(), strict=True):
        assert (mine.data_ptr() == own.data_ptr()) is (count == 1)
        assert mine is not own  # or two groups with one codec would get the sum of their gradients
        assert mine.is_leaf


def test_stacking_leaves_the_codecs_without_gradients() -> None:
    codecs = _codecs(SPECS[0], 2)
    stacked = StackedCodecs(codecs, wants_gradient=True)
    torch.autograd.backward(stacked.decode(torch.randn(2, 1, 1, 3)).sum())
    assert all(parameter.grad is None for codec in codecs for parameter in codec.parameters())
    assert not any(
        each.requires_grad for each in StackedCodecs(codecs, wants_gradient=False).parameters.values()
    )


def test_what_was_not_used_has_no_gradient() -> None:
    for count in (1, 2):
        stacked = StackedCodecs(_codecs(SPECS[0], count), wants_gradient=True)
        weight = stacked.parameters["decoder.body.weight"]
        only = stacked.of(0, {"decoder.body.weight": weight, "encoder.body.weight": None})
        assert list(only) == ["decoder.body.weight"]
        assert only["decoder.body.weight"].shape == (WIDTH, 3)
