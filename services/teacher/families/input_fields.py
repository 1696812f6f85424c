"""Describes the tensors a teacher takes as inputs and checks what came against it.

A field is written `DTYPE[SIZES]` or, for ids, `DTYPE[SIZES]<N`: "float32[*,8]" is one row of eight numbers an
example, "int64[*]<1683" one id an example, from 0 to 1682. The first size is `*`, the batch; another `*` is
an axis of any size. int64 and int32 need the bound, because they can index an embedding.

This module knows no models.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from services.teacher.families.base import InputField, InputsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = ["check_one_kind", "check_tensors", "parse_field", "parse_fields"]

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.bool,
    )
}
_INDEX_DTYPES = (torch.int64, torch.int32)
_ANY = "*"
_MAX_RANK = 8
_GRAMMAR = re.compile(r"(?P<dtype>\w+) *\[(?P<sizes>[^\[\]]*)\] *(?:< *(?P<maximum>[0-9]+))?")


def parse_fields(texts: Mapping[str, str]) -> tuple[InputField, ...]:
    """Reads the fields of a config.

    Args:
        texts: name to type and sizes, for example {"item": "int64[*]<1683"}.

    Raises:
        ValueError: there is none, or one is written wrongly; names the field, what came, what was expected.
    """
    if not texts:
        raise ValueError("inputs: got no fields, expected at least one")
    return tuple(parse_field(name, text) for name, text in texts.items())


def parse_field(name: str, text: str) -> InputField:
    """Reads one field, for example "x" and "float32[*,8]".

    Raises:
        ValueError: it is written wrongly.
    """
    if not name.isidentifier():
        raise ValueError(f"inputs: got the name {name!r}, expected a Python identifier")
    match = _GRAMMAR.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"inputs.{name}: got {text!r}, expected DTYPE[*,SIZE,...] or DTYPE[*,SIZE,...]<N")
    if match["dtype"] not in _DTYPES:
        raise ValueError(
            f"inputs.{name}: got the type {match['dtype']!r}, expected one of {', '.join(_DTYPES)}"
        )
    dtype = _DTYPES[match["dtype"]]
    return InputField(
        name=name,
        dtype=dtype,
        shape=_parse_sizes(name, match["sizes"]),
        maximum=_parse_maximum(name, dtype, match["maximum"]),
    )


def _parse_sizes(name: str, text: str) -> tuple[int, ...]:
    sizes = [size.strip() for size in text.split(",")]
    if sizes[0] != _ANY:
        raise ValueError(f"inputs.{name}: got the first size {sizes[0]!r}, expected * (the batch)")
    if len(sizes) > _MAX_RANK:
        raise ValueError(f"inputs.{name}: got {len(sizes)} sizes, expected at most {_MAX_RANK}")
    for size in sizes:
        if size != _ANY and not re.fullmatch("[1-9][0-9]*", size):
            raise ValueError(f"inputs.{name}: got the size {size!r}, expected * or a positive integer")
    return tuple(-1 if size == _ANY else int(size) for size in sizes)


def _parse_maximum(name: str, dtype: torch.dtype, text: str | None) -> int | None:
    if text is None:
        if dtype in _INDEX_DTYPES:
            raise ValueError(f"inputs.{name}: got integers without a bound, expected <N after the sizes")
        return None
    if dtype not in _INDEX_DTYPES:
        raise ValueError(f"inputs.{name}: got the bound <{text}, expected none but for int64 and int32")
    if not 1 <= int(text) <= torch.iinfo(dtype).max:
        raise ValueError(f"inputs.{name}: got the bound <{text}, expected 1 to {torch.iinfo(dtype).max}")
    return int(text)


def check_one_kind(texts: Sequence[str], tensors: Mapping[str, Tensor], *, accepts_texts: bool) -> None:
    """Checks that either texts or tensors came, and texts only where they are read.

    Raises:
        InputsError: both came, neither, or texts for a teacher of tensors.
    """
    if texts and not accepts_texts:
        raise InputsError(f"inputs.texts: got {len(texts)} texts, expected none: the teacher reads tensors")
    if bool(texts) == bool(tensors):
        got = "both texts and tensors" if texts else "neither texts nor tensors"
        expected = "exactly one of the two" if accepts_texts else "tensors"
        raise InputsError(f"inputs: got {got}, expected {expected}")


def check_tensors(
    fields: Sequence[InputField], tensors: Mapping[str, Tensor], *, max_len: int
) -> dict[str, Tensor]:
    """Checks named tensors against their fields.

    Args:
        fields: what is expected.
        tensors: what came, by name.
        max_len: the largest size of an axis of any size, the batch apart.

    Returns:
        The same tensors, in the order of the fields.

    Raises:
        InputsError: a name, type, size or value is wrong; names the field, what came, what was expected.
    """
    unknown = sorted(tensors.keys() - {field.name for field in fields})
    if unknown:
        known = ", ".join(field.name for field in fields)
        raise InputsError(f"inputs: got the unknown name {unknown[0]!r}, expected some of: {known}")
    checked: dict[str, Tensor] = {}
    for field in fields:
        if field.name in tensors:
            _check_tensor(field, tensors[field.name], max_len)
            checked[field.name] = tensors[field.name]
        elif field.required:
            raise InputsError(f"inputs[{field.name}]: got nothing, expected a {_describe(field)} tensor")
    _check_rows(checked)
    return checked


def _check_tensor(field: InputField, tensor: Tensor, max_len: int) -> None:
    where = f"inputs[{field.name}]"
    if tensor.dtype != field.dtype:
        raise InputsError(f"{where}: got {_dtype_name(tensor.dtype)}, expected {_describe(field)}")
    if tensor.ndim != len(field.shape) or any(
        want not in (-1, got) for got, want in zip(tensor.shape, field.shape, strict=True)
    ):
        raise InputsError(f"{where}: got shape {list(tensor.shape)}, expected {_describe(field)}")
    if 0 in tensor.shape:
        raise InputsError(f"{where}: got shape {list(tensor.shape)}, expected no size of 0")
    for size, want in list(zip(tensor.shape, field.shape, strict=True))[1:]:
        if want == -1 and size > max_len:
            raise InputsError(f"{where}: got {size} positions, expected at most {max_len}")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise InputsError(f"{where}: got NaN or infinity, expected finite values")
    if field.maximum is not None:
        low, high = (int(bound) for bound in torch.aminmax(tensor))
        if low < 0 or high >= field.maximum:
            got = low if low < 0 else high
            raise InputsError(f"{where}: got the value {got}, expected 0 to {field.maximum - 1}")


def _check_rows(tensors: Mapping[str, Tensor]) -> None:
    """Checks that all tensors have as many rows as the first."""
    rows: dict[str, int] = {name: tensor.shape[0] for name, tensor in tensors.items()}
    for name, num_rows in rows.items():
        first, expected = next(iter(rows.items()))
        if num_rows != expected:
            raise InputsError(f"inputs[{name}]: got {num_rows} rows, expected {expected} as in {first!r}")


def _describe(field: InputField) -> str:
    """Returns type and sizes as a config writes them, for example "float32[*,8]"."""
    sizes = ",".join(_ANY if size == -1 else str(size) for size in field.shape)
    return f"{_dtype_name(field.dtype)}[{sizes}]"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
