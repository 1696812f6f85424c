"""Says which row of a table is not what a config says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from student_client.preparation import is_number
from student_client.reading import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from student_client.data_config import DataConfig

__all__ = ["check_values"]


def check_values(
    source: str,
    rows: Sequence[dict[str, Any]],
    config: DataConfig,
    *,
    numbered: bool = True,
    labelled: bool = True,
) -> None:
    """Says which row lacks a value, or has something else where the config says a number.

    Args:
        source: where the rows are from.
        rows: values by column.
        config: says which columns are numbers.
        numbered: whether they are all of the source's, in order.
        labelled: whether they have labels.

    Raises:
        DataError: one does.
    """
    kinds = dict(config.features)
    if config.task == "regression" and labelled:
        kinds[config.label] = "float32"
    for number, row in enumerate(rows, start=1):
        empty = [name for name, value in row.items() if value is None or not str(value).strip()]
        wrong = [name for name, kind in kinds.items() if not is_number(row[name], kind)]
        unlike = None if empty else _words_problem(row, config, labelled=labelled)
        if not (empty or wrong or unlike):
            continue
        place = f"row {number}" if numbered else f"a row with {_shown(row)}"
        if unlike:
            raise DataError(f"{source}, {place}, {unlike}")
        if empty:
            raise DataError(f"{source}, {place}: got no value in {empty}, expected one")
        name = wrong[0]
        raise DataError(
            f"{source}, {place}, column {name!r}: got {row[name]!r}, expected a number ({kinds[name]})"
        )


def _words_problem(row: dict[str, Any], config: DataConfig, *, labelled: bool) -> str | None:
    """Returns what is wrong with a row's words and the label of each; None: nothing."""
    if config.words is None:
        return None
    columns = [config.words, *([config.label] if labelled else [])]
    for column in columns:
        if not isinstance(row[column], list) or not row[column]:
            return f"column {column!r}: got {row[column]!r}, expected a list with one a word"
    lengths = [len(row[column]) for column in columns]
    if lengths[0] != lengths[-1]:
        return f"columns {columns}: got lists of lengths {lengths}, expected equal ones"
    return None


def _shown(row: dict[str, Any]) -> str:
    return ", ".join(f"{name}={str(value)[:20]!r}" for name, value in row.items())
