"""Reads a source of examples whole, as an arrow table: csv, parquet, json lines, image folders, Hugging Face.

Knows no tensors and no Ray; `streaming` reads the same sources piece by piece.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import csv, dataset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from student_client.data_config import DataConfig, DataFormat

__all__ = ["DataError", "check_columns", "csv_options", "files_of", "format_of", "image_files", "read_table"]

_SUFFIXES: dict[str, DataFormat] = {
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
_IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"}
_HF_FILES = ("dataset_info.json", "dataset_dict.json")


class DataError(ValueError):
    """A table is not what the config says; names the file, the column and the row."""


def format_of(source: str, wanted: str) -> DataFormat:
    """Returns what a source is.

    Raises:
        DataError: it can't be told.
    """
    if wanted != "auto":
        return wanted  # type: ignore[return-value]  # pydantic has checked it
    path = Path(source)
    if path.suffix.lower() in _SUFFIXES and not path.is_dir():
        return _SUFFIXES[path.suffix.lower()]
    if not path.exists():
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
            return "huggingface"
        raise DataError(f"{source}: got nothing there, expected a file, a folder or a Hugging Face data set")
    if any((path / name).exists() for name in _HF_FILES):
        return "huggingface"
    found = {each.suffix.lower() for each in path.rglob("*") if each.is_file()} if path.is_dir() else set()
    formats = {_SUFFIXES[suffix] for suffix in found if suffix in _SUFFIXES}
    if found & _IMAGE_SUFFIXES and not formats:
        return "images"
    if len(formats) == 1:
        return formats.pop()
    raise DataError(
        f"{source}: got files of {sorted(found) or 'no kind'}, expected csv, parquet, jsonl or images; "
        "data.format says which"
    )


def read_table(
    source: str, config: DataConfig, split: str = "train", columns: Sequence[str] | None = None
) -> pa.Table:
    """Reads the columns of a config.

    Args:
        source: a file, a folder or a Hugging Face data set.
        config: names the columns.
        split: of a Hugging Face data set that has several.
        columns: those that are read; None: all of the config.

    Raises:
        DataError: it can't be read, or lacks a column.
    """
    kind = format_of(source, config.format)
    columns = config.columns if columns is None else columns
    try:
        if kind == "huggingface":
            table = _read_huggingface(source, config, split, columns)
        elif kind == "images":
            table = _read_images(source, config)
        elif kind == "csv":
            table = _read_csv(source, columns)
        else:
            files = files_of(source, kind)
            table = dataset.dataset(files, format="json" if kind == "jsonl" else kind).to_table()
    except FileNotFoundError as error:
        raise DataError(f"{source}: can't be read: {error.strerror or error}") from None
    except OSError as error:
        raise DataError(f"{source}: can't be read: {error.strerror or error}") from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{source}: not {kind}: {error}") from None
    check_columns(source, table.column_names, columns)
    return table.select(list(columns))


def files_of(source: str, kind: DataFormat) -> list[str]:
    """Returns the files of a source, in order: itself, or those of a format in a folder.

    Raises:
        DataError: there are none.
    """
    path = Path(source)
    if not path.is_dir():
        found = [source] if path.exists() else []
    else:
        found = sorted(str(each) for each in path.rglob("*") if _SUFFIXES.get(each.suffix.lower()) == kind)
    if not found:
        raise DataError(f"{source}: can't be read: got nothing there, expected {kind} files")
    return found


def check_columns(source: str, found: Sequence[str], expected: Sequence[str]) -> None:
    """Says which columns a source lacks.

    Raises:
        DataError: it lacks one.
    """
    missing = [column for column in expected if column not in found]
    if missing:
        raise DataError(f"{source}: got columns {sorted(found)}, expected {missing} too")


def csv_options(columns: Sequence[str]) -> dict[str, Any]:
    """Returns how csv files are parsed: every column that is read is a text, so that nothing is guessed."""
    types = {column: pa.string() for column in columns}
    return {
        "parse_options": csv.ParseOptions(newlines_in_values=True),
        "convert_options": csv.ConvertOptions(
            column_types=types, strings_can_be_null=False, quoted_strings_can_be_null=False
        ),
    }


def _read_csv(source: str, columns: Sequence[str]) -> pa.Table:
    tables = []
    for file in files_of(source, "csv"):
        table = csv.read_csv(file, **csv_options(columns))
        check_columns(file, table.column_names, columns)
        tables.append(table.select(list(columns)))
    return pa.concat_tables(tables)


def _read_huggingface(source: str, config: DataConfig, split: str, columns: Sequence[str]) -> pa.Table:
    """Reads a data set of the hub or of `save_to_disk`; images stay bytes or files."""
    import datasets  # noqa: PLC0415 - heavy

    if Path(source).exists():
        loaded = datasets.load_from_disk(source)
    else:
        try:
            loaded = datasets.load_dataset(source, config.hf_config)
        except Exception as error:  # noqa: BLE001 - the hub's own errors have no common base
            raise DataError(f"{source}: can't be loaded from the Hugging Face hub: {error}") from None
    if isinstance(loaded, datasets.DatasetDict):
        names = {"valid": "validation", "unlabelled": "unsupervised"}
        wanted = next((name for name in (split, names.get(split)) if name in loaded), None)
        if wanted is None:
            raise DataError(f"{source}: got splits {sorted(loaded)}, expected {split}")
        loaded = loaded[wanted]
    check_columns(source, loaded.column_names, columns)
    names_of = {
        column: feature.names
        for column, feature in loaded.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    table = loaded.select_columns(list(columns)).with_format("arrow")[:]
    if config.label in columns and config.label in names_of:
        numbers = table[config.label].to_pylist()
        values = pa.array(_class_names(source, config.label, numbers, names_of[config.label]))
        table = table.set_column(table.column_names.index(config.label), config.label, values)
    return table


def _class_names(source: str, column: str, numbers: Sequence[Any], names: Sequence[str]) -> list[str]:
    """Returns the names of numbered classes; -1 is how some data sets say that there is none."""
    for row, number in enumerate(numbers, start=1):
        if not (isinstance(number, int) and 0 <= number < len(names)):
            raise DataError(
                f"{source}, row {row}, column {column!r}: got class {number!r}, expected 0 to "
                f"{len(names) - 1}"
            )
    return [names[number] for number in numbers]


def image_files(source: str) -> tuple[list[str], list[str]]:
    """Returns the images of a folder with one folder a class, and their classes."""
    files = sorted(each for each in Path(source).rglob("*") if each.suffix.lower() in _IMAGE_SUFFIXES)
    return [str(file) for file in files], [file.parent.name for file in files]


def _read_images(source: str, config: DataConfig) -> pa.Table:
    files, classes = image_files(source)
    return pa.table({config.image or "image": files, config.label: classes})
