"""The losses of talking and of its neighbours, as plain functions.

The body of Talking Models (arXiv 2310.03188) was not available to us; these are reconstructions from its
abstract and second-hand descriptions, and every open reading is an argument.

Shapes: B batch, L positions, D width of a model's states, K positions and M width of a message, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from preceptor.codec import resample
from preceptor.distance import state_distance

if TYPE_CHECKING:
    from preceptor.codec import Decoder, Encoder

__all__ = [
    "attention",
    "hint",
    "interaction",
    "logits_distillation",
    "message_consistency",
    "message_contrast",
    "relation",
    "state_consistency",
]


_EPSILON = 1e-12


def attention(
    student_states: Tensor, teacher_states: Tensor, mask: Tensor, teacher_mask: Tensor, power: float = 2.0
) -> Tensor:
    """Attention transfer by activations (Zagoruyko & Komodakis, arXiv 1612.03928, equation 2).

    Where a model looks is sum_d |H_d|^p of each position, divided by its L2 norm over the positions; the
    teacher's positions are spread over the student's. These maps' squared distance, as in the authors' code,
    is from 0 to 2 a row.

    Args:
        student_states: [B, L, D].
        teacher_states: [B, L', D'], of any width.
        mask: [B, L], bool.
        teacher_mask: [B, L'], bool.
        power: p.

    Returns:
        A scalar.

    Raises:
        ValueError: the student's states have no positions.
    """
    if student_states.ndim == 2:  # noqa: PLR2004 - rank
        raise ValueError(
            f"losses.attention: got student's states of shape {list(student_states.shape)}, expected "
            "positions among which to attend, [B, L, D]"
        )
    theirs = resample(_energy(teacher_states, power)[..., None], teacher_mask, mask)[..., 0]
    maps = [
        functional.normalize(energy * mask, dim=-1) for energy in (_energy(student_states, power), theirs)
    ]
    return (maps[0] - maps[1]).square().sum(-1).mean()


def _energy(states: Tensor, power: float) -> Tensor:
    """Returns sum_d |H_d|^p of each position, [B, L]."""
    return states.float().abs().pow(power).sum(-1)


def interaction(student_states: Tensor, decoded: Tensor, mask: Tensor | None = None) -> Tensor:
    """d(S_hi, S'_hi): the student's own upper states and those decoded from the reply (arXiv 2310.03188).

    Args:
        student_states: [B, L, D] or [B, D].
        decoded: of the same shape.
        mask: [B, L], bool; None: all positions are valid.

    Returns:
        A scalar.
    """
    first, second, mask = _with_positions(student_states, decoded, mask)
    return state_distance(first, second, mask).mean()


def message_consistency(
    message: Tensor, other: Tensor, mask: Tensor | None = None, *, detach_other: bool = False
) -> Tensor:
    """L_MC: the same input gives the same message from both ends (arXiv 2310.03188).

    Open reading: `other` is the teacher's message about the same input, Enc_T(T), or the reply to `message`.

    Args:
        message: Enc_S(S), [B, K, M].
        other: [B, K, M].
        mask: [B, K], bool; None: all positions are valid.
        detach_other: whether only the student's end is drawn to the other one.

    Returns:
        A scalar.
    """
    return interaction(message, other.detach() if detach_other else other, mask)


def message_contrast(
    message: Tensor,
    other: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 0.1,
    detach_other: bool = False,
) -> Tensor:
    """L_MC as a contrast (InfoNCE, van den Oord et al., arXiv 1807.03748, equation 4).

    A row's message shall be told from those of the batch's other rows by what the other end says of the row:
    cross entropy of cosines over the batch. One row has nothing to be told from.

    Args:
        message: [B, K, M]; its mean over valid positions is compared.
        other: [B, K, M].
        mask: [B, K], bool; None: all positions are valid.
        temperature: that cosines are divided by.
        detach_other: whether only `message` is drawn.

    Returns:
        A scalar.
    """
    first, second, mask = _with_positions(message, other.detach() if detach_other else other, mask)
    count = mask.sum(-1, keepdim=True).clamp_min(1)
    ours, theirs = (
        functional.normalize((each * mask[..., None]).sum(1) / count, dim=-1) for each in (first, second)
    )
    rows = torch.arange(len(ours), device=ours.device)
    return functional.cross_entropy(ours @ theirs.T / temperature, rows)


def state_consistency(
    encoder: Encoder, decoder: Decoder, states: Tensor, mask: Tensor, message_mask: Tensor
) -> Tensor:
    """L_SC: state to message and back gives the state, d(Dec(Enc(H)), H) (arXiv 2310.03188).

    With fewer positions in the message than in the sequence, H is compared at the message's positions.

    Args:
        encoder: the model's encoder.
        decoder: its decoder.
        states: H, [B, L, D].
        mask: [B, L], bool.
        message_mask: [B, K], bool.

    Returns:
        A scalar.
    """
    target = resample(states, mask, message_mask)
    back = decoder(encoder(target, message_mask, message_mask))
    return state_distance(back, target, message_mask).mean()


def logits_distillation(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Distillation of outputs (Hinton et al., arXiv 1503.02531, section 2).

    With one output a row (regression) it is the mean squared error; with several, temperature^2 times the
    Kullback-Leibler divergence from the teacher's to the student's softened distribution.

    Args:
        student_logits: [B, C], or [B] for regression.
        teacher_logits: [B, C].
        temperature: softens both distributions; 1 leaves them.

    Returns:
        A scalar.
    """
    student = student_logits.reshape(teacher_logits.shape)
    if teacher_logits.shape[-1] == 1:
        return functional.mse_loss(student, teacher_logits)
    divergence = functional.kl_div(
        torch.log_softmax(student / temperature, -1),
        torch.log_softmax(teacher_logits / temperature, -1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2


def hint(student_pooled: Tensor, teacher_pooled: Tensor) -> Tensor:
    """Hidden-state hints (FitNets, Romero et al., arXiv 1412.6550, equation 3), on pooled, scaled states.

    Args:
        student_pooled: the student's pooled state after a learned map to the teacher's width, [B, D].
        teacher_pooled: [B, D].

    Returns:
        A scalar.
    """
    return interaction(student_pooled, teacher_pooled)


def relation(student_pooled: Tensor, teacher_pooled: Tensor) -> Tensor:
    """Relations of a batch's rows (Park et al., arXiv 1904.05068): distances of pairs, angles of triplets.

    L_D + 2 L_A, the paper's ratio of 25 to 50: Huber losses between both models' distances, each in units of
    its own mean (equations 5 and 6), and between their cosines (equation 8). A batch of one row has none.

    Args:
        student_pooled: [B, D].
        teacher_pooled: [B, D'], of any width.

    Returns:
        A scalar.
    """
    student, teacher = student_pooled.float(), teacher_pooled.float()
    if len(student) == 1:
        return (student * 0.0).sum()
    ours, theirs = _relations(student), _relations(teacher)
    distances, angles = (functional.smooth_l1_loss(a, b) for a, b in zip(ours, theirs, strict=True))
    return distances + 2.0 * angles


def _relations(states: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the distances [B, B] in units of their mean, and the cosines [B, B, B] at each row."""
    differences = states[None] - states[:, None]  # [B, B, D]
    squares = differences.square().sum(-1)
    apart = squares > _EPSILON
    # Equal rows have no direction, and a root has no slope at 0.
    lengths = torch.where(apart, squares, 1.0).sqrt() * apart
    mean = lengths.sum() / apart.sum().clamp_min(1)
    directions = differences / torch.where(apart, lengths, 1.0)[..., None] * apart[..., None]
    return lengths / mean.clamp_min(_EPSILON), directions @ directions.transpose(1, 2)


def _with_positions(first: Tensor, second: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Adds a position axis to [B, D] states and a mask where there is none."""
    if first.shape != second.shape:
        raise ValueError(f"states: got {list(second.shape)}, expected {list(first.shape)} as of the other")
    if first.ndim == 2:  # noqa: PLR2004 - rank
        first, second = first[:, None], second[:, None]
    if mask is None:
        mask = torch.ones(first.shape[:2], dtype=torch.bool, device=first.device)
    return first, second, mask.bool()
