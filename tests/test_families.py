"""Teachers from transformers: cut in two and run by hand, they must be the whole model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from services.teacher.config import DecoderConfig, EncoderConfig
from services.teacher.families.base import InputsError, Modality, States, Teacher, UnsupportedError
from services.teacher.families.decoder import DecoderTeacher, causal_mask, position_ids
from services.teacher.families.encoder import EncoderTeacher, padding_mask
from tests.tiny_models import load_from, save_tiny

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Pairs = dict[str, tuple[Teacher, Any]]  # a teacher and the whole model it was cut from, by kind
TEXTS = ["a teacher reads", "b", "a b c d a b c d a b c d"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Tiny teachers and the whole models they were cut from."""
    made: Pairs = {}
    for kind in ("encoder", "classifier", "roberta", "decoder", "qwen"):
        folder = tmp_path_factory.mktemp(kind)
        model = save_tiny(folder, kind)
        made[kind] = (load_from(folder, "decoder" if kind in ("decoder", "qwen") else "encoder"), model)
    return made


@pytest.fixture(scope="session")
def real() -> Pairs:
    """The teachers with real weights and the whole models they were cut from, each loaded once."""
    models: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        for kind in (EncoderTeacher, DecoderTeacher):
            patch.setattr(kind, "check_against", lambda _, model: models.append(model))
        teachers = [load_from(EncoderConfig().path, "encoder"), load_from(DecoderConfig().path, "decoder")]
    return dict(zip(("minilm", "smollm2"), zip(teachers, models, strict=True), strict=True))


@torch.no_grad()
def _check_equal_to_model(teacher: Teacher, model: Any, texts: list[str], splits: tuple[int, ...]) -> None:
    inputs = teacher.prepare(texts, {})
    mask = inputs["attention_mask"]
    for split in splits:
        states = teacher.upper(teacher.lower(inputs, split), split)
        expected = model.base_model(**inputs).last_hidden_state
        assert torch.equal(states.hidden_states[mask], expected[mask])
        if teacher.facts.has_head:
            logits = model(**inputs).logits
            last = logits[torch.arange(len(texts)), mask.sum(1) - 1] if logits.ndim == 3 else logits
            # The head sees one position instead of all, so its sums run in another order.
            torch.testing.assert_close(teacher.head(states), last, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["encoder", "classifier", "roberta", "decoder", "qwen"])
def test_lower_then_upper_is_the_whole_model(pairs: Pairs, kind: str) -> None:
    teacher, model = pairs[kind]
    _check_equal_to_model(teacher, model, TEXTS, (0, 1, 2, 3))


@pytest.mark.weights
@pytest.mark.parametrize(("kind", "splits"), [("minilm", tuple(range(7))), ("smollm2", (0, 1, 15, 29, 30))])
def test_lower_then_upper_is_the_whole_real_model(real: Pairs, kind: str, splits: tuple[int, ...]) -> None:
    teacher, model = real[kind]
    _check_equal_to_model(
        teacher, model, ["The capital of France is", "Rain", "One two three, four and five"], splits
    )


def _read(teacher: Teacher, rows: list[list[int]], length: int, split: int) -> Tensor:
    """Returns the pooled upper states of rows of ids; -1 stands for padding, wherever it is."""
    padded = torch.tensor([row + [-1] * (length - len(row)) for row in rows])
    inputs = teacher.prepare([], {"input_ids": padded.clamp_min(0), "attention_mask": padded >= 0})
    with torch.no_grad():
        return teacher.pool(teacher.upper(teacher.lower(inputs, split), split))


@pytest.mark.parametrize("kind", ["encoder", "roberta", "decoder", "qwen"])
def test_padding_on_the_right_changes_nothing(pairs: Pairs, kind: str) -> None:
    teacher, _ = pairs[kind]
    alone = _read(teacher, [[5, 6, 7]], 3, 1)
    padded = _read(teacher, [[5, 6, 7], [8, 9, 10, 11, 4, 5]], 12, 1)[:1]
    torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("row", [[-1, -1, 5, 6, 7], [5, -1, 6, -1, -1, 7], [5, 6, -1, 7, -1, -1]])
def test_padding_anywhere_changes_nothing_for_a_decoder(pairs: Pairs, row: list[int]) -> None:
    teacher, _ = pairs["decoder"]
    torch.testing.assert_close(
        _read(teacher, [row], 8, 2), _read(teacher, [[5, 6, 7]], 3, 2), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_message_beside_a_padded_input_is_read_as_beside_an_unpadded_one(pairs: Pairs, kind: str) -> None:
    teacher, _ = pairs[kind]
    message = torch.randn(1, 2, 16)
    replies = []
    for padding in (0, 3):
        inputs = {
            "input_ids": torch.tensor([[5, 6, 7] + [0] * padding]),
            "attention_mask": torch.tensor([[1, 1, 1] + [0] * padding]),
        }
        own = teacher.lower(teacher.prepare([], inputs), 1)
        mask = torch.cat([own.mask, torch.ones(1, 2, dtype=torch.bool)], 1)
        both = States(torch.cat([own.hidden_states, message], 1), mask)
        replies.append(teacher.upper(both, 1).hidden_states[:, -2:])
    torch.testing.assert_close(replies[0], replies[1], rtol=1e-5, atol=1e-6)


def test_positions_count_valid_tokens_only() -> None:
    mask = torch.tensor([[0, 1, 0, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    assert position_ids(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]]


def test_every_query_attends_to_something() -> None:
    mask = torch.tensor([[0, 1, 0], [0, 0, 0]]).bool()
    assert causal_mask(mask)[0, 0].int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert causal_mask(mask)[1, 0].int().tolist() == torch.eye(3).int().tolist()
    assert padding_mask(mask)[:, 0].int().tolist() == [[[0, 1, 0]] * 3, [[1, 1, 1]] * 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_rows_without_a_valid_position_give_no_nan(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    save_tiny(tmp_path, kind)
    teacher = load_from(tmp_path, kind, dtype=dtype)
    hidden_states = torch.randn(3, 4, 16, dtype=dtype, requires_grad=True)
    mask = torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]]).bool()
    upper = teacher.upper(States(hidden_states, mask), 1)
    pooled = teacher.pool(upper)
    (gradient,) = torch.autograd.grad(
        pooled.float().square().sum() + upper.hidden_states.sum(), hidden_states
    )
    assert torch.isfinite(upper.hidden_states).all()
    assert torch.isfinite(gradient).all()
    assert pooled.dtype is dtype
    assert pooled[0].eq(0).all()
    assert pooled[1:].ne(0).any(1).all()


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_gradients_reach_the_injected_states_and_no_parameter(pairs: Pairs, kind: str) -> None:
    teacher, _ = pairs[kind]
    hidden_states = torch.randn(2, 3, 16, requires_grad=True)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    loss = teacher.pool(teacher.upper(States(hidden_states, mask), 1)).square().sum()
    torch.autograd.backward(loss)
    assert hidden_states.grad is not None
    assert hidden_states.grad[mask].ne(0).any(-1).all()
    assert hidden_states.grad[~mask].eq(0).all()
    parameters = list(teacher._parts.as_module().parameters())  # type: ignore[attr-defined]
    assert parameters
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in parameters)


def test_texts_are_padded_on_the_right_and_cut(tmp_path: Path) -> None:
    save_tiny(tmp_path, "encoder")
    inputs = load_from(tmp_path, "encoder", max_input_len=6).prepare(["a b", "a b c d a b c d"], {})
    assert inputs["input_ids"].tolist() == [[2, 4, 5, 3, 0, 0], [2, 4, 5, 6, 7, 3]]
    assert inputs["attention_mask"].tolist() == [[True] * 4 + [False] * 2, [True] * 6]


def test_an_empty_text_is_read_as_one_token(pairs: Pairs) -> None:
    assert pairs["decoder"][0].prepare(["", "a b"], {})["input_ids"].tolist() == [[2, 0], [4, 5]]
    assert pairs["encoder"][0].prepare([""], {})["input_ids"].tolist() == [[2, 3]]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"input_ids": torch.tensor([[0, 40]])}, "inputs[input_ids]: got the value 40, expected 0 to 39"),
        ({"input_ids": torch.tensor([[0, -1]])}, "inputs[input_ids]: got the value -1, expected 0 to 39"),
        ({"input_ids": torch.zeros(1, 2)}, "inputs[input_ids]: got float32, expected int64[*,*]"),
        ({"input_ids": torch.zeros(2).long()}, "inputs[input_ids]: got shape [2], expected int64[*,*]"),
        (
            {"input_ids": torch.zeros(1, 25).long()},
            "inputs[input_ids]: got 25 positions, expected at most 24",
        ),
        (
            {"attention_mask": torch.ones(1, 2).long()},
            "inputs[input_ids]: got nothing, expected a int64[*,*] tensor",
        ),
        (
            {"input_ids": torch.zeros(1, 2).long(), "attention_mask": torch.tensor([[1, 2]])},
            "inputs[attention_mask]: got the value 2, expected 0 to 1",
        ),
        (
            {"input_ids": torch.zeros(1, 2).long(), "attention_mask": torch.ones(1, 3).bool()},
            "inputs[attention_mask]: got shape [1, 3], expected [1, 2] as in 'input_ids'",
        ),
    ],
)
def test_wrong_tensors_are_refused(pairs: Pairs, tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(InputsError) as caught:
        pairs["decoder"][0].prepare([], tensors)
    assert str(caught.value) == message


def test_ids_are_taken_with_and_without_a_mask(pairs: Pairs) -> None:
    teacher, ids = pairs["encoder"][0], torch.tensor([[2, 4, 3, 0]])
    assert teacher.prepare([], {"input_ids": ids})["attention_mask"].all()
    for mask in (torch.tensor([[1, 1, 1, 0]]), torch.tensor([[1, 1, 1, 0]]).bool()):
        prepared = teacher.prepare([], {"input_ids": ids, "attention_mask": mask})
        assert prepared["attention_mask"].tolist() == [[True, True, True, False]]


def test_facts_describe_the_model(pairs: Pairs) -> None:
    facts = pairs["decoder"][0].facts
    assert (facts.name, facts.family, facts.num_layers, facts.hidden_size) == ("tiny", "decoder", 3, 16)
    assert (facts.modality, facts.dtype, facts.max_len) == (Modality.TEXT, torch.float32, 24)
    assert facts.num_parameters == sum(weight.numel() for weight in pairs["decoder"][1].parameters())
    assert [(field.name, field.required) for field in facts.inputs] == [
        ("input_ids", True),
        ("attention_mask", False),
    ]
    assert len(facts.fingerprint) == 64
    assert facts.fingerprint != pairs["qwen"][0].facts.fingerprint
    assert pairs["roberta"][0].facts.max_len == 22
    assert pairs["classifier"][0].facts.has_head
    assert all(isinstance(teacher, Teacher) for teacher, _ in pairs.values())


def test_an_encoder_without_a_head_gives_no_output(pairs: Pairs) -> None:
    teacher = pairs["encoder"][0]
    assert not teacher.facts.has_head
    with pytest.raises(UnsupportedError, match="logits: got a teacher without a head"):
        teacher.head(States(torch.zeros(1, 2, 16), torch.ones(1, 2, dtype=torch.bool)))


@pytest.mark.weights
def test_real_weights_mean_what_they_should(real: Pairs) -> None:
    minilm, smollm2 = real["minilm"][0], real["smollm2"][0]
    inputs = minilm.prepare(["A man eats food.", "A man eats a piece of bread.", "The sky is blue."], {})
    pooled = minilm.pool(minilm.upper(minilm.lower(inputs, 3), 3))
    cosines = torch.nn.functional.cosine_similarity(pooled[:1], pooled[1:])
    assert cosines[0] > 0.5 > cosines[1]
    texts = ["The capital of France is", "The capital of Germany is"]
    inputs = smollm2.prepare([*texts, " Paris", " Berlin"], {})
    logits = smollm2.head(smollm2.upper(smollm2.lower(inputs, 15), 15))
    assert logits[:2].argmax(-1).tolist() == inputs["input_ids"][2:, 0].tolist()
