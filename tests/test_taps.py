"""Reading and replacing a student's states by module path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from student_client import Taps


class Layer(nn.Module):
    """Returns a tuple, as transformers' layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, states: Tensor) -> tuple[Tensor, str]:
        return self.linear(states), "attentions"


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.extra = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        self.last: Any = None

    def forward(self, states: Tensor) -> Tensor:
        for layer in self.layers:
            states, self.last = layer(states)
        output: Tensor = self.head(states)
        return output


class Names(nn.Module):
    def forward(self, states: Tensor) -> dict[str, Tensor]:
        return {"states": states}


def test_a_tap_keeps_the_first_element_of_a_modules_output() -> None:
    student = Student()
    taps = Taps(student, {"lower": "layers.0", "inner": "layers.1.linear"})
    states = torch.randn(3, 4)
    student(states)
    expected = student.layers[0](states)[0]
    assert torch.equal(taps["lower"], expected)
    assert torch.equal(taps["inner"], student.layers[1](expected)[0])
    assert taps["lower"].requires_grad


def test_a_tap_is_of_the_last_forward_pass() -> None:
    student = Student()
    taps = Taps(student, {"lower": "layers.0"})
    first, second = torch.randn(3, 4), torch.randn(5, 4)
    student(first)
    student(second)
    assert taps["lower"].shape == (5, 4)


def test_a_module_that_did_not_run_is_named() -> None:
    student = Student()
    taps = Taps(student, {"lower": "layers.0", "unused": "extra"})
    message = "tap 'unused': module 'extra' did not run in the last forward pass"
    student(torch.randn(3, 4))
    with pytest.raises(RuntimeError, match=message):
        taps["unused"]
    taps.clear()
    with pytest.raises(RuntimeError, match=r"tap 'lower': module 'layers.0' did not run"):
        taps["lower"]


@pytest.mark.parametrize(
    ("path", "close"), [("layers.0.linaer", "layers.0.linear"), ("layer.1", "layers.1"), ("zzz", "layers")]
)
def test_an_unknown_path_suggests_close_ones(path: str, close: str) -> None:
    with pytest.raises(ValueError, match=f"tap 'lower': the student has no module '{path}'; .*{close}"):
        Taps(Student(), {"lower": path})


def test_a_module_without_a_tensor_is_refused() -> None:
    names = nn.Sequential(Names())
    taps = Taps(names, {"states": "0"})
    with pytest.raises(TypeError, match="tap 'states': module '0' returned dict, expected a tensor"):
        names(torch.randn(2, 4))
    taps.remove()
    assert isinstance(names(torch.randn(2, 4)), dict)


def test_replaced_states_are_what_follows_computes_from() -> None:
    student = Student()
    taps = Taps(student, {"upper": "layers.1"})
    states, other = torch.randn(3, 4), torch.randn(3, 4, requires_grad=True)
    plain = student(states)
    own = taps["upper"]
    with taps.replaced("upper", other):
        output = student(states)
    assert torch.equal(output, student.head(other))
    assert student.last == "attentions"
    assert taps["upper"] is own
    torch.autograd.backward(output.sum())
    assert other.grad is not None
    assert torch.equal(student(states), plain)


def test_a_replaced_module_may_return_a_plain_tensor() -> None:
    student = Student()
    taps = Taps(student, {"upper": "layers.1.linear"})
    with taps.replaced("upper", torch.zeros(3, 4)):
        output = student(torch.randn(3, 4))
    assert torch.equal(output, student.head(torch.zeros(3, 4)))


def test_a_failure_while_replaced_puts_everything_back() -> None:
    student = Student()
    taps = Taps(student, {"upper": "layers.1"})
    states = torch.randn(3, 4)
    plain = student(states)
    with (
        pytest.raises(RuntimeError, match=r"must match|shapes cannot be multiplied"),
        taps.replaced("upper", torch.zeros(3, 5)),
    ):
        student(states)
    assert torch.equal(student(states), plain)


def test_removed_taps_keep_nothing() -> None:
    student = Student()
    taps = Taps(student, {"lower": "layers.0"})
    taps.remove()
    student(torch.randn(3, 4))
    with pytest.raises(RuntimeError, match="did not run"):
        taps["lower"]
