"""The losses against their formulas, written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from preceptor.codec import CodecSpec, Decoder, Encoder
from student_client import losses

MASK = torch.tensor([[True, True, False], [True, False, False]])


def _states(*shape: int, seed: int = 0, requires_grad: bool = False) -> Tensor:
    states = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return states.requires_grad_(requires_grad)


def _scaled(states: Tensor) -> Tensor:
    return states / states.square().mean(-1, keepdim=True).sqrt()


def _distance(first: Tensor, second: Tensor) -> Tensor:
    return (_scaled(first) - _scaled(second)).square().mean(-1)


def test_interaction_is_the_mean_over_rows_of_the_mean_over_positions() -> None:
    first, second = _states(2, 3, 4), _states(2, 3, 4, seed=1)
    error = _distance(first, second)
    expected = ((error[0, 0] + error[0, 1]) / 2 + error[1, 0]) / 2
    torch.testing.assert_close(losses.interaction(first, second, MASK), expected)
    torch.testing.assert_close(losses.interaction(first, second, MASK.long()), expected)
    torch.testing.assert_close(losses.interaction(first, second), error.mean())


def test_interaction_takes_states_without_positions() -> None:
    first, second = _states(5, 4), _states(5, 4, seed=1)
    torch.testing.assert_close(losses.interaction(first, second), _distance(first, second).mean())


def test_interaction_refuses_states_of_different_shapes() -> None:
    with pytest.raises(ValueError, match=r"states: got \[2, 4\], expected \[2, 3, 4\] as of the other"):
        losses.interaction(_states(2, 3, 4), _states(2, 4))


def test_interaction_draws_both_ends() -> None:
    first, second = _states(2, 3, 4, requires_grad=True), _states(2, 3, 4, seed=1, requires_grad=True)
    torch.autograd.backward(losses.interaction(first, second, MASK))
    for states in (first, second):
        assert states.grad is not None
        assert states.grad[MASK].ne(0).any(-1).all()
        assert states.grad[~MASK].eq(0).all()


@pytest.mark.parametrize("detach_other", [False, True])
def test_message_consistency_draws_the_other_end_unless_told_not_to(*, detach_other: bool) -> None:
    message, other = _states(2, 3, 4, requires_grad=True), _states(2, 3, 4, seed=1, requires_grad=True)
    loss = losses.message_consistency(message, other, MASK, detach_other=detach_other)
    torch.testing.assert_close(loss, losses.interaction(message, other, MASK))
    torch.autograd.backward(loss)
    assert message.grad is not None
    assert (other.grad is None) == detach_other


def test_state_consistency_compares_at_the_positions_of_the_message() -> None:
    spec = CodecSpec(message_dim=3, message_len=1)
    encoder, decoder = Encoder(spec, 4), Decoder(spec, 4)
    states, one = _states(2, 3, 4), torch.ones(2, 1, dtype=torch.bool)
    loss = losses.state_consistency(encoder, decoder, states, MASK, one)
    mean = torch.stack([states[0, :2].mean(0), states[1, 0]])[:, None]
    back = decoder.body(encoder.body(mean)) + decoder.position
    torch.testing.assert_close(loss, _distance(back, mean).mean())
    torch.autograd.backward(loss)
    assert all(each.grad is not None for each in [*encoder.parameters(), *decoder.parameters()])


def test_state_consistency_of_a_free_length_uses_every_valid_position() -> None:
    spec = CodecSpec(message_dim=3)
    encoder, decoder = Encoder(spec, 4), Decoder(spec, 4)
    states = _states(2, 3, 4)
    back = decoder.body(encoder.body(states))
    torch.testing.assert_close(
        losses.state_consistency(encoder, decoder, states, MASK, MASK),
        losses.interaction(back, states, MASK),
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logits_of_classes_give_the_softened_divergence(temperature: float) -> None:
    student, teacher = _states(3, 5, requires_grad=True), _states(3, 5, seed=1)
    p, q = (torch.softmax(each / temperature, -1) for each in (teacher, student))
    expected = temperature**2 * (p * (p.log() - q.log())).sum(-1).mean()
    loss = losses.logits_distillation(student, teacher, temperature)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient, temperature * (q - p).detach() / 3)


def test_logits_of_one_output_give_the_squared_error() -> None:
    student, teacher = _states(4), _states(4, 1, seed=1)
    expected = (student - teacher[:, 0]).square().mean()
    torch.testing.assert_close(losses.logits_distillation(student, teacher, 3.0), expected)
    torch.testing.assert_close(losses.logits_distillation(student[:, None], teacher), expected)


def test_equal_logits_cost_nothing() -> None:
    logits = _states(3, 5)
    torch.testing.assert_close(losses.logits_distillation(logits, logits, 2.0), torch.tensor(0.0))


def test_a_hint_is_the_distance_of_pooled_states() -> None:
    student, teacher = _states(3, 5), _states(3, 5, seed=1)
    torch.testing.assert_close(losses.hint(student, teacher), _distance(student, teacher).mean())
    torch.testing.assert_close(losses.hint(student, 3 * student), torch.tensor(0.0), atol=1e-5, rtol=0)


def test_relations_are_distances_of_pairs_and_cosines_of_triplets() -> None:
    student, teacher = _states(4, 5), _states(4, 7, seed=1)

    def relations(states: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        rows = range(len(states))
        lengths = [(states[i] - states[j]).norm() for i in rows for j in rows]
        mean = torch.stack([each for each in lengths if each > 0]).mean()
        angles = [
            functional.normalize(states[i] - states[j], dim=0)
            @ functional.normalize(states[k] - states[j], dim=0)
            for j in rows
            for i in rows
            for k in rows
        ]
        return [each / mean for each in lengths], angles

    def huber(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        errors = (torch.stack(ours) - torch.stack(theirs)).abs()
        return torch.where(errors <= 1, 0.5 * errors.square(), errors - 0.5).mean()

    (our_lengths, our_angles), (their_lengths, their_angles) = relations(student), relations(teacher)
    expected = huber(our_lengths, their_lengths) + 2 * huber(our_angles, their_angles)
    torch.testing.assert_close(losses.relation(student, teacher), expected)


def test_relations_are_those_of_a_turned_moved_and_scaled_batch() -> None:
    teacher = _states(6, 5)
    turn, _ = torch.linalg.qr(_states(5, 5, seed=1))
    alike = 3.0 * teacher @ turn + 7.0
    torch.testing.assert_close(losses.relation(alike, teacher), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert losses.relation(alike.flip(0), teacher) > 0.01


@pytest.mark.parametrize("same", [1, 2, 4])
def test_rows_that_are_equal_have_relations_with_finite_slopes(same: int) -> None:
    first = _states(1, 5)
    student = torch.cat([first.expand(same, 5), _states(4 - same, 5, seed=2)]).requires_grad_()
    loss = losses.relation(student, _states(4, 3, seed=1))
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() < 10


def test_one_row_has_no_relations() -> None:
    student = _states(1, 5, requires_grad=True)
    loss = losses.relation(student, _states(1, 3))
    (gradient,) = torch.autograd.grad(loss, student)
    assert (loss.item(), gradient.abs().sum().item()) == (0.0, 0.0)


def test_a_contrast_is_the_cross_entropy_of_cosines_over_the_batch() -> None:
    message, other = _states(2, 3, 4), _states(2, 3, 4, seed=1)
    ours, theirs = (torch.stack([each[0, :2].mean(0), each[1, 0]]) for each in (message, other))
    cosines = functional.cosine_similarity(ours[:, None], theirs[None], dim=-1) / 0.1
    expected = -cosines.log_softmax(-1).diag().mean()
    torch.testing.assert_close(losses.message_contrast(message, other, MASK), expected)
    softer = -(cosines / 5).log_softmax(-1).diag().mean()
    torch.testing.assert_close(losses.message_contrast(message, other, MASK, temperature=0.5), softer)
    assert losses.message_contrast(message[:1], other[:1]) == 0


@pytest.mark.parametrize("detach_other", [False, True])
def test_a_contrast_draws_the_other_end_unless_told_not_to(*, detach_other: bool) -> None:
    message, other = _states(2, 3, 4, requires_grad=True), _states(2, 3, 4, seed=1, requires_grad=True)
    torch.autograd.backward(losses.message_contrast(message, other, MASK, detach_other=detach_other))
    assert message.grad is not None
    assert message.grad[~MASK].eq(0).all()
    assert (other.grad is None) == detach_other


def test_attention_is_compared_where_states_are_large() -> None:
    student, teacher = _states(2, 3, 4), _states(2, 4, 7, seed=1)
    teacher_mask = torch.tensor([[True] * 4, [True, True, False, False]])
    ours, theirs = student.square().sum(-1), teacher.square().sum(-1)
    first = [ours[0, :2], torch.stack([theirs[0, :2].mean(), theirs[0, 2:].mean()])]
    error = (first[0] / first[0].norm() - first[1] / first[1].norm()).square().sum()
    loss = losses.attention(student, teacher, MASK, teacher_mask)
    torch.testing.assert_close(loss, (error + 0.0) / 2)  # a single position has all the attention


def test_equal_attention_costs_nothing_at_any_width_and_scale() -> None:
    student = _states(2, 3, 4)
    teacher = torch.cat([student, student], -1) * 5.0
    loss = losses.attention(student, teacher, MASK, MASK)
    torch.testing.assert_close(loss, torch.tensor(0.0), atol=1e-6, rtol=0)
    assert losses.attention(student, teacher.flip(1), torch.ones_like(MASK), torch.ones_like(MASK)) > 0.01
    cubes = losses.attention(student, 2 * student, MASK, MASK, power=3.0)
    torch.testing.assert_close(cubes, torch.tensor(0.0), atol=1e-6, rtol=0)


def test_attention_needs_positions() -> None:
    one = torch.ones(2, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"losses\.attention: got student's states of shape \[2, 4\]"):
        losses.attention(_states(2, 4), _states(2, 1, 7), one, one)
