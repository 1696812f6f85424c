"""The little language of a module's inputs, and the checks of what came."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from services.teacher.config import ModuleConfig
from services.teacher.families.base import InputField, InputsError
from services.teacher.families.input_fields import (
    check_one_kind,
    check_tensors,
    parse_field,
    parse_fields,
)

FIELDS = parse_fields({"item": "int64[*,*]<10", "x": "float32[*,3]"})


def _good() -> dict[str, Tensor]:
    return {"item": torch.tensor([[0, 9], [3, 4]]), "x": torch.ones(2, 3)}


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("int64[*]<1683", InputField("f", torch.int64, (-1,), maximum=1683)),
        (" int32 [ * , 4 ] < 7 ", InputField("f", torch.int32, (-1, 4), maximum=7)),
        ("float32[*,8]", InputField("f", torch.float32, (-1, 8))),
        ("bfloat16[*,*,3]", InputField("f", torch.bfloat16, (-1, -1, 3))),
        ("uint8[*,28,28]", InputField("f", torch.uint8, (-1, 28, 28))),
        ("bool[*]", InputField("f", torch.bool, (-1,))),
    ],
)
def test_a_field_is_read(text: str, field: InputField) -> None:
    assert parse_field("f", text) == field


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected DTYPE"),
        ("float32", "expected DTYPE"),
        ("float32[*,8]<", "expected DTYPE"),
        ("float32[*,8]?", "expected DTYPE"),
        ("float64[*]", "expected one of float32"),
        ("float32[]", "expected \\* \\(the batch\\)"),
        ("float32[4,8]", "expected \\* \\(the batch\\)"),
        ("float32[*,0]", "expected \\* or a positive integer"),
        ("float32[*,-1]", "expected \\* or a positive integer"),
        ("float32[*,]", "expected \\* or a positive integer"),
        ("float32[*,1,1,1,1,1,1,1,1]", "expected at most 8"),
        ("float32[*]<4", "expected none but for int64 and int32"),
        ("int64[*]", "expected <N"),
        ("int64[*]<0", "expected 1 to 9223372036854775807"),
        ("int32[*]<2147483648", "expected 1 to 2147483647"),
    ],
)
def test_a_field_that_is_written_wrongly_is_refused(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=f"inputs.f: got .*{expected}"):
        parse_field("f", text)


def test_a_config_with_wrong_inputs_is_refused() -> None:
    config = {"factory": "a:b", "weights": "w.safetensors"}
    assert ModuleConfig.model_validate({**config, "inputs": {"x": "float32[*,8]"}}).inputs
    for inputs, message in (
        ({}, "got no fields"),
        ({"not a name": "bool[*]"}, "expected a Python identifier"),
        ({"item": "int64[*]"}, "inputs.item: got integers without a bound"),
    ):
        with pytest.raises(ValidationError, match=message):
            ModuleConfig.model_validate({**config, "inputs": inputs})


def test_good_tensors_pass_in_the_order_of_the_fields() -> None:
    good = _good()
    checked = check_tensors(FIELDS, dict(reversed(good.items())), max_len=2)
    assert list(checked) == ["item", "x"]
    assert checked["item"] is good["item"]
    optional = (*FIELDS, InputField("mask", torch.bool, (-1,), required=False))
    assert "mask" not in check_tensors(optional, good, max_len=2)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("y", torch.ones(2), "inputs: got the unknown name 'y', expected some of: item, x"),
        ("x", None, "inputs[x]: got nothing, expected a float32[*,3] tensor"),
        ("x", torch.ones(2, 3).double(), "inputs[x]: got float64, expected float32[*,3]"),
        ("x", torch.ones(2), "inputs[x]: got shape [2], expected float32[*,3]"),
        ("x", torch.ones(2, 4), "inputs[x]: got shape [2, 4], expected float32[*,3]"),
        ("x", torch.ones(3, 3), "inputs[x]: got 3 rows, expected 2 as in 'item'"),
        ("x", torch.full((2, 3), torch.nan), "inputs[x]: got NaN or infinity, expected finite values"),
        ("x", torch.full((2, 3), torch.inf), "inputs[x]: got NaN or infinity, expected finite values"),
        ("item", torch.zeros(2, 0).long(), "inputs[item]: got shape [2, 0], expected no size of 0"),
        ("item", torch.zeros(0, 2).long(), "inputs[item]: got shape [0, 2], expected no size of 0"),
        ("item", torch.zeros(2, 6).long(), "inputs[item]: got 6 positions, expected at most 5"),
        ("item", torch.tensor([[10, 0]]), "inputs[item]: got the value 10, expected 0 to 9"),
        ("item", torch.tensor([[0, -1]]), "inputs[item]: got the value -1, expected 0 to 9"),
    ],
)
def test_wrong_tensors_are_refused(name: str, value: Tensor | None, message: str) -> None:
    tensors = _good()
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    with pytest.raises(InputsError) as caught:
        check_tensors(FIELDS, tensors, max_len=5)
    assert str(caught.value) == message


def test_exactly_one_of_texts_and_tensors_is_taken() -> None:
    check_one_kind(["a"], {}, accepts_texts=True)
    check_one_kind([], _good(), accepts_texts=False)
    for texts, tensors, accepts_texts, message in (
        ([], {}, True, "got neither texts nor tensors, expected exactly one of the two"),
        (["a"], _good(), True, "got both texts and tensors, expected exactly one of the two"),
        ([], {}, False, "got neither texts nor tensors, expected tensors"),
        (["a"], {}, False, "inputs.texts: got 1 texts, expected none"),
    ):
        with pytest.raises(InputsError, match=message):
            check_one_kind(texts, tensors, accepts_texts=accepts_texts)
