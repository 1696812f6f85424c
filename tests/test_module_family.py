"""Any torch module as a teacher: built by a factory, loaded from safetensors, run by rows or by sequences."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.teacher.config import ServiceConfig
from services.teacher.families import load_teacher
from services.teacher.families.base import InputsError, Modality, States, Teacher, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOURCE = """
import torch
from torch import nn

class Embed(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.items, self.project = nn.Embedding(10, width), nn.Linear(3, width)

    def forward(self, item, x):
        projected = self.project(x)
        return self.items(item) + (projected if item.ndim == 1 else projected[:, None])

class Recommender(nn.Module):
    def __init__(self, width=4, outputs=2):
        super().__init__()
        self.embed = Embed(width)
        self.blocks = nn.ModuleList([nn.Linear(width, width), nn.BatchNorm1d(width), nn.Tanh()])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, outputs))

    def forward(self, item, x):
        hidden = self.embed(item=item, x=x)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden))

class Scores(Recommender):
    def __init__(self):
        super().__init__(outputs=1)
        self.head = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))

def sequences():
    model = Recommender()
    model.blocks[1] = nn.Identity()
    return model

def widening():
    model = Recommender()
    model.blocks[1] = nn.Linear(4, 5)
    return model

not_a_module = dict
"""
ROWS = {"item": "int64[*]<10", "x": "float32[*,3]"}
SEQUENCES = {"item": "int64[*,*]<10", "x": "float32[*,3]"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the module's source; what importing it changes is undone."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "recommender_source.py").write_text(SOURCE)
    yield tmp_path
    sys.modules.pop("recommender_source", None)


def _load(
    folder: Path, factory: str = "Recommender", /, *, dtype: torch.dtype = torch.float32, **model: Any
) -> Teacher:
    """Saves a new module's random state unless there is one, and loads a teacher with it."""
    sys.path.insert(0, str(folder))
    import recommender_source as source  # type: ignore[import-not-found]  # noqa: PLC0415

    weights = folder / "state.safetensors"
    if not weights.exists():
        torch.manual_seed(0)
        state = getattr(source, factory)().state_dict()
        save_file({name: value.clone() for name, value in state.items()}, weights)
    settings = {
        "family": "module",
        "factory": f"recommender_source:{factory}",
        "inputs": ROWS,
        "norm": "norm",
    }
    config = ServiceConfig.model_validate(
        {
            "auth": "none",
            "model": {**settings, "weights": weights, **model},
            "python_path": [folder],
        }
    )
    return load_teacher(config, torch.device("cpu"), dtype)


def _whole(folder: Path, factory: str) -> Any:
    model = getattr(sys.modules["recommender_source"], factory)()
    model.load_state_dict(load_file(folder / "state.safetensors"))
    return model.eval()


def _inputs() -> dict[str, Tensor]:
    return {"item": torch.tensor([0, 3, 9]), "x": torch.randn(3, 3)}


@pytest.mark.parametrize("split", [0, 1, 2, 3])
@pytest.mark.parametrize("factory", ["Recommender", "Scores"])
def test_a_module_of_rows_is_the_whole_module(folder: Path, factory: str, split: int) -> None:
    teacher = _load(folder, factory)
    inputs = teacher.prepare([], _inputs())
    lower = teacher.lower(inputs, split)
    expected = _whole(folder, factory)(**inputs)
    assert lower.hidden_states.shape == (3, 1, 4)
    assert lower.mask.shape == (3, 1)
    assert lower.mask.all()
    expected = expected[:, None] if expected.ndim == 1 else expected
    torch.testing.assert_close(teacher.head(teacher.upper(lower, split)), expected)


def test_a_module_of_sequences_is_the_whole_module(folder: Path) -> None:
    teacher = _load(folder, "sequences", inputs=SEQUENCES)
    inputs = teacher.prepare([], {"item": torch.randint(10, (3, 5)), "x": torch.randn(3, 3)})
    upper = teacher.upper(teacher.lower(inputs, 1), 1)
    assert upper.hidden_states.shape == (3, 5, 4)
    expected = _whole(folder, "sequences")(**inputs).mean(1)
    torch.testing.assert_close(teacher.head(upper), expected)


def test_blocks_of_rows_read_each_position_of_a_message_by_itself(folder: Path) -> None:
    teacher = _load(folder)
    message = torch.randn(2, 5, 4)
    upper = teacher.upper(States(message, torch.ones(2, 5, dtype=torch.bool)), 1)
    assert upper.hidden_states.shape == message.shape
    one = teacher.upper(States(message[:, 3:4], torch.ones(2, 1, dtype=torch.bool)), 1)
    torch.testing.assert_close(upper.hidden_states[:, 3:4], one.hidden_states)


def test_only_valid_positions_are_pooled(folder: Path) -> None:
    teacher = _load(folder)
    states = torch.arange(24.0).reshape(2, 3, 4)
    pooled = teacher.pool(States(states, torch.tensor([[True, False, True], [False, False, False]])))
    assert pooled.tolist() == [[4.0, 5.0, 6.0, 7.0], [0.0] * 4]


def test_gradients_reach_the_injected_states_and_no_parameter(folder: Path) -> None:
    teacher = _load(folder)
    hidden_states = torch.randn(2, 3, 4, requires_grad=True)
    upper = teacher.upper(States(hidden_states, torch.ones(2, 3, dtype=torch.bool)), 1)
    torch.autograd.backward(upper.hidden_states.square().sum() + teacher.head(upper).sum())
    assert hidden_states.grad is not None
    assert hidden_states.grad.ne(0).any(-1).all()
    parameters = list(teacher.parameters())
    assert parameters
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in parameters)


def test_facts_describe_the_module(folder: Path) -> None:
    facts = _load(folder, kwargs={"width": 4}).facts
    assert (facts.family, facts.num_layers, facts.hidden_size, facts.has_head) == ("module", 3, 4, True)
    assert (facts.modality, facts.num_parameters) == (Modality.TENSORS, 40 + 16 + 20 + 8 + 8 + 10)
    assert [(field.name, field.maximum) for field in facts.inputs] == [("item", 10), ("x", None)]
    assert facts.fingerprint == _load(folder).facts.fingerprint


def test_the_module_computes_in_the_dtype_it_was_given(folder: Path) -> None:
    teacher = _load(folder, dtype=torch.bfloat16)
    states = teacher.upper(teacher.lower(teacher.prepare([], _inputs()), 1), 1)
    assert states.hidden_states.dtype is teacher.head(states).dtype is torch.bfloat16


def test_wrong_inputs_never_reach_the_module(folder: Path) -> None:
    teacher = _load(folder)
    good = _inputs()
    for texts, tensors, message in (
        (["a"], {}, "inputs.texts: got 1 texts, expected none"),
        (
            [],
            {**good, "item": torch.tensor([0, 3, 10])},
            r"inputs\[item\]: got the value 10, expected 0 to 9",
        ),
        ([], {**good, "x": torch.full((3, 3), torch.nan)}, r"inputs\[x\]: got NaN or infinity"),
        ([], {"item": good["item"]}, r"inputs\[x\]: got nothing, expected a float32\[\*,3\] tensor"),
    ):
        with pytest.raises(InputsError, match=message):
            teacher.prepare(texts, tensors)


def test_a_module_without_a_head_gives_no_output(folder: Path) -> None:
    teacher = _load(folder, head=None)
    assert not teacher.facts.has_head
    with pytest.raises(UnsupportedError, match="logits: got a teacher without a head"):
        teacher.head(teacher.lower(_inputs(), 0))


@pytest.mark.parametrize(
    ("factory", "model", "message"),
    [
        (
            "Recommender",
            {"factory": "recommender_source"},
            "model.factory: .*expected package.module:callable",
        ),
        ("Recommender", {"factory": "recommender_source:nothing"}, "model.factory: .*expected a callable"),
        (
            "Recommender",
            {"factory": "recommender_source:not_a_module"},
            "model.factory: got a dict .*torch module",
        ),
        ("Recommender", {"embed": "encoder"}, "model.embed: got 'encoder', expected a submodule"),
        (
            "Recommender",
            {"blocks": "head.0"},
            "model.blocks: got a Linear at 'head.0', expected a ModuleList",
        ),
        (
            "Recommender",
            {"kwargs": {"width": 5}},
            "model.weights: got .*expected the module's state: .*size mismatch",
        ),
        ("widening", {}, r"model.blocks\[1\]: got shape \[2, 5\], expected \[2, 4\]"),
        (
            "Recommender",
            {"head": "norm", "norm": "head"},
            r"model.norm: got shape \[2, 2\], expected \[2, 4\]",
        ),
    ],
)
def test_a_config_that_does_not_fit_the_module_is_refused(
    folder: Path, factory: str, model: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        _load(folder, factory, **model)
