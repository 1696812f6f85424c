"""A linear probe of a teacher: what its pooled states say of labels that it has no head for.

It is fitted once, before training, on the labelled training rows; how much it is held back is chosen on the
validation rows. Then its outputs are those that a student is distilled from, with and without labels.

Shapes: N rows, D the teacher's hidden size, C outputs.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from preceptor.terms import ObservationKind
from student_client.batches import Examples, are_labels

if TYPE_CHECKING:
    from student_client.activity import Activity
    from student_client.config import TrainConfig
    from student_client.data import Splits
    from student_client.talk import TeacherTalk
    from student_client.talking import TalkingLosses

__all__ = ["Probe", "fit_probe", "probed"]

_L2_GRID = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4)  # from the most held back, each begins where the last ended
_MAX_ITERATIONS = 200
_OUTPUTS_OF_REGRESSION = 1


@dataclasses.dataclass(frozen=True)
class Probe:
    """A linear map of pooled states to outputs.

    Attributes:
        weight: [C, D].
        bias: [C].
        l2: what the squared weights were weighed with, of states scaled to variance 1.
    """

    weight: Tensor
    bias: Tensor
    l2: float

    def __call__(self, states: Tensor) -> Tensor:
        """Returns the outputs of pooled states, [N, D] -> [N, C]."""
        return functional.linear(states, self.weight, self.bias)

    def worth(self, states: Tensor, labels: Tensor) -> float:
        """Returns its accuracy (0 to 1), or its root mean squared error if labels are numbers."""
        outputs = self(states)
        if labels.is_floating_point():
            return (outputs[:, 0] - labels).square().mean().sqrt().item()
        return (outputs.argmax(-1) == labels).float().mean().item()


def fit_probe(
    states: Tensor, labels: Tensor, valid_states: Tensor, valid_labels: Tensor, num_classes: int
) -> Probe:
    """Fits a probe to some rows and chooses by others how much its weights are held back.

    With classes it is logistic regression (L-BFGS), with numbers ridge regression (solved).

    Args:
        states: pooled, [N, D].
        labels: [N], int64 classes or float32 numbers.
        valid_states: of other rows.
        valid_labels: of those.
        num_classes: C; of no matter for numbers.
    """
    mean, scale = states.mean(0), states.std(0, correction=0).clamp_min(1e-6)
    scaled = (states - mean) / scale
    is_regression = labels.is_floating_point()
    weight = states.new_zeros(_OUTPUTS_OF_REGRESSION if is_regression else num_classes, states.shape[1])
    bias = states.new_zeros(len(weight))
    found: list[tuple[tuple[float, float], Probe]] = []
    for l2 in _L2_GRID:
        if is_regression:
            weight, bias = _ridge(scaled, labels, l2)
        else:
            weight, bias = _logistic(scaled, labels, l2, weight, bias)
        probe = Probe(weight / scale, bias - weight @ (mean / scale), l2)
        found.append((_score(probe, valid_states, valid_labels), probe))
    return max(found, key=lambda each: each[0])[1]


def _score(probe: Probe, states: Tensor, labels: Tensor) -> tuple[float, float]:
    """Returns how good a probe is, more being better, and what decides between equals."""
    if labels.is_floating_point():
        return -probe.worth(states, labels), 0.0
    return probe.worth(states, labels), -functional.cross_entropy(probe(states), labels).item()


def _ridge(scaled: Tensor, labels: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """Minimises mean (y - wx - b)^2 + l2 w^2 over rows that have mean 0; returns [1, D] and [1]."""
    rows = scaled.double()
    bias = labels.double().mean()
    gram = rows.T @ rows / len(rows) + l2 * torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    weight = torch.linalg.solve(gram, rows.T @ (labels.double() - bias) / len(rows))
    return weight[None].to(scaled.dtype), bias[None].to(scaled.dtype)


def _logistic(
    scaled: Tensor, labels: Tensor, l2: float, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Minimises the mean cross entropy + l2/2 w^2, from given weights [C, D] and [C]; returns new ones."""
    leaves = [each.clone().requires_grad_() for each in (weight, bias)]
    optimizer = torch.optim.LBFGS(leaves, max_iter=_MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        with torch.enable_grad():
            outputs = functional.linear(scaled, *leaves)
            loss = functional.cross_entropy(outputs, labels) + l2 / 2 * leaves[0].square().sum()
            torch.autograd.backward(loss)
        return loss.item()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return leaves[0].detach(), leaves[1].detach()


def probed(
    config: TrainConfig, splits: Splits, talking: TalkingLosses | None, activity: Activity
) -> tuple[Splits, dict[str, Any]]:
    """Gives the training rows the outputs of a probe, if that is what a run is distilled from.

    Args:
        config: of the run.
        splits: its examples.
        talking: whose teacher is asked for its pooled states, each row once.
        activity: is told.

    Returns:
        The splits, with `told` training examples, and what a run's result says of distillation; nothing where
        there is none.

    Raises:
        TeacherError: see `student_client.errors`.
    """
    if not config.losses.kd or talking is None:
        return splits, {}
    if config.losses.kd_source == "head":
        return splits, {"kd_source": "head"}
    train, valid, test = splits.train, splits.valid, splits.test
    assert isinstance(train, Examples)  # noqa: S101 - the config refuses a stream
    assert isinstance(valid, Examples)  # noqa: S101
    assert isinstance(test, Examples)  # noqa: S101
    with activity.now("asking the teacher for its states, for a probe"):
        states, *others = (_pooled(talking.talk, each, config.batch_size) for each in (train, valid, test))
    if not talking.asks:
        talking.talk.close()
    with activity.now("fitting a probe of the teacher"):
        known = are_labels(train.labels)
        probe = fit_probe(states[known], train.labels[known], others[0], valid.labels, len(splits.classes))
    told = dataclasses.replace(splits, train=dataclasses.replace(train, told=probe(states)))
    worth = {
        "valid": probe.worth(others[0], valid.labels),
        "test": probe.worth(others[1], test.labels),
        "l2": probe.l2,
    }
    return told, {"kd_source": "probe", "probe": worth}


def _pooled(talk: TeacherTalk, examples: Examples, batch_size: int) -> Tensor:
    """Returns the teacher's pooled states of all rows, [N, D]; a batch is asked for while one is awaited."""
    kinds = [ObservationKind.POOLED_STATE]
    seen: list[Tensor] = []
    with torch.no_grad():
        waiting = None
        for batch in examples.batches(batch_size):
            asked = talk.start_observe(batch.teacher, kinds)
            if waiting is not None:
                seen.append(waiting.result()["pooled_state"])
            waiting = asked
        assert waiting is not None  # noqa: S101 - splits are never empty
        seen.append(waiting.result()["pooled_state"])
    return torch.cat(seen).float().cpu()
