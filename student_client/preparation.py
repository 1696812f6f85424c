"""Turns rows of a table into what a student reads, what the teacher reads, and labels.

A text becomes tokens of the student's own tokenizer, or hashed words where it has none; the teacher gets the
text, since it has a tokenizer of its own. Knows no files and no Ray.
"""

from __future__ import annotations

import io
import math
import re
import zlib
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from student_client.data_config import PIXELS
from student_client.reading import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from student_client.data_config import DataConfig
    from student_client.student_config import StudentConfig

__all__ = ["IGNORED", "SEQUENCES", "Preparation", "hash_words", "is_number"]

IGNORED = -100  # the label of a row or position that has none; a number's is NaN
# Inputs whose second axis is positions.
SEQUENCES = ("input_ids", "attention_mask", "token_type_ids")

_WORD = re.compile(r"\w+|[^\w\s]")
_DTYPES = {"int64": torch.int64, "float32": torch.float32}


class Preparation:
    """Prepares rows; the same for a table that is read whole and for pieces of a stream.

    Args:
        config: names the columns.
        student: says which tokenizer is the student's; None: words are hashed.
        classes: the labels' names in the order of the student's outputs; empty for regression.
    """

    def __init__(
        self, config: DataConfig, student: StudentConfig | None, classes: Sequence[str] = ()
    ) -> None:
        self.config = config
        self.classes = tuple(classes)
        self._tokenizer_source = None if student is None else student.tokenizer or student.pretrained
        if not (config.text or config.words):
            self._tokenizer_source = None
        self._tokenizer: Any = None
        self._number_of = {name: number for number, name in enumerate(self.classes)}

    def prepare(self, rows: dict[str, list[Any]]) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the student's inputs by name, and the labels, the rows first.

        Labels are [B] int64 or float32, or [B, L] int64 with `IGNORED` for token-level ones.

        Args:
            rows: values by column.

        Raises:
            DataError: a value is not what the config says.
        """
        config = self.config
        inputs: dict[str, Tensor] = {}
        tags = torch.empty(0)
        if config.words or config.text:
            inputs, tags = self._sequences(rows)
        for name, kind in config.features.items():
            inputs[name] = _numbers(rows[name], name, _DTYPES[kind])
        if config.image:
            inputs[PIXELS] = torch.stack([_pixels(each, config) for each in rows[config.image]])
        return inputs, tags if config.task == "tokens" else self.labels(rows)

    def teacher_texts(self, rows: dict[str, list[Any]]) -> list[str] | None:
        """Returns what the teacher reads, a text a row; None if it reads some of the student's inputs."""
        config = self.config
        if config.teacher_features is not None:
            return None
        if config.teacher_text:
            return [str(text) for text in rows[config.teacher_text]]
        if config.words:
            return [" ".join(map(str, words)) for words in rows[config.words]]
        return self._texts(rows) if config.text else None

    def _texts(self, rows: dict[str, list[Any]]) -> list[str]:
        """Returns what the student reads as one text a row."""
        texts = rows[self.config.text or ""]
        if self.config.text_pair:
            pairs = zip(texts, rows[self.config.text_pair], strict=True)
            return [f"{first} {second}" for first, second in pairs]
        return [str(text) for text in texts]

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """The student's inputs that the teacher reads, where it reads no texts."""
        if self.config.teacher_features is not None:
            return self.config.teacher_features
        return (*self.config.features, *([PIXELS] if self.config.image else []))

    def labels(self, rows: dict[str, list[Any]]) -> Tensor:
        """Returns the labels of whole rows, [B] int64 or float32; that of None is `IGNORED` or NaN.

        Raises:
            DataError: a label is no number, or of no known class.
        """
        values = rows[self.config.label]
        if self.config.task == "regression":
            known = torch.tensor([value is not None for value in values])
            numbers = [value for value in values if value is not None]
            labels = torch.full((len(values),), torch.nan)
            labels[known] = _numbers(numbers, self.config.label, torch.float32)
            return labels
        return torch.tensor([IGNORED if value is None else self._class(value) for value in values])

    def _class(self, value: object) -> int:
        try:
            return self._number_of[str(value)]
        except KeyError:
            raise DataError(
                f"column {self.config.label!r}: got class {value!r} that the training table lacks, expected "
                f"one of {list(self.classes)[:8]}"
            ) from None

    def _sequences(self, rows: dict[str, list[Any]]) -> tuple[dict[str, Tensor], Tensor]:
        """Returns token ids with their masks, and each position's label."""
        config = self.config
        tokenizer = self._load_tokenizer()
        tags = rows.get(config.label) if config.words else None
        if tokenizer is None:
            return self._hashed(rows, tags)
        first = [list(words) for words in rows[config.words]] if config.words else rows[config.text or ""]
        encoded = tokenizer(
            first,
            rows[config.text_pair] if config.text_pair else None,
            is_split_into_words=config.words is not None,
            truncation=True,
            max_length=config.max_len,
            padding="longest",
            return_tensors="pt",
        )
        labels = torch.full(encoded["input_ids"].shape, IGNORED)
        for row, row_tags in enumerate(tags or ()):
            previous = None
            for position, word in enumerate(encoded.word_ids(row)):
                if row_tags is not None and word is not None and word != previous:
                    labels[row, position] = self._class(row_tags[word])
                previous = word
        return {name: encoded[name] for name in SEQUENCES if name in encoded}, labels

    def _hashed(self, rows: dict[str, list[Any]], tags: list[Any] | None) -> tuple[dict[str, Tensor], Tensor]:
        config = self.config
        if config.words:
            ids = [_hash([str(word) for word in words], config) for words in rows[config.words]]
        else:
            ids = [hash_words(text, config.vocab_size, config.max_len) for text in self._texts(rows)]
        length = max(map(len, ids))
        padded = torch.zeros(len(ids), length, dtype=torch.int64)
        labels = torch.full((len(ids), length), IGNORED)
        for row, words in enumerate(ids):
            padded[row, : len(words)] = torch.tensor(words)
            if tags is not None and tags[row] is not None:
                row_tags = tags[row][: len(words)]
                labels[row, : len(row_tags)] = torch.tensor([self._class(tag) for tag in row_tags])
        return {"input_ids": padded, "attention_mask": padded != 0}, labels

    def _load_tokenizer(self) -> Any:
        if self._tokenizer is None and self._tokenizer_source is not None:
            from transformers import AutoTokenizer  # noqa: PLC0415 - heavy

            try:
                self._tokenizer = AutoTokenizer.from_pretrained(self._tokenizer_source, padding_side="right")
            except (OSError, ValueError) as error:
                raise DataError(
                    f"student.tokenizer: got {self._tokenizer_source!r}, which can't be loaded: {error}"
                ) from None
            if self._tokenizer.pad_token is None:
                self._tokenizer.pad_token = self._tokenizer.eos_token  # masked anyway
        return self._tokenizer


def hash_words(text: str, vocab_size: int, max_len: int) -> list[int]:
    """Returns the buckets, 1 to vocab_size - 1, of a text's first words and punctuation marks."""
    words = _WORD.findall(text.lower())[:max_len]
    return [1 + zlib.crc32(word.encode()) % (vocab_size - 1) for word in words] or [1]


def _hash(words: Sequence[str], config: DataConfig) -> list[int]:
    """Returns one bucket a word."""
    if not words:
        raise DataError(f"column {config.words!r}: got a row without words, expected some")
    lowered = [word.lower() for word in words[: config.max_len]]
    return [1 + zlib.crc32(word.encode()) % (config.vocab_size - 1) for word in lowered]


def _numbers(values: Sequence[Any], column: str, dtype: torch.dtype) -> Tensor:
    try:
        convert = int if dtype is torch.int64 else _finite
        return torch.tensor([convert(value) for value in values], dtype=dtype)
    except (TypeError, ValueError) as error:
        raise DataError(f"column {column!r}: {error}; expected numbers") from None


def is_number(value: Any, kind: Literal["int64", "float32"]) -> bool:
    """Tells whether a value can be read as a whole or finite number."""
    try:
        int(value) if kind == "int64" else _finite(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _finite(value: str | float) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"got {value!r}")
    return number


def _pixels(image: Any, config: DataConfig) -> Tensor:
    """Returns an image as [3, size, size], float32, 0 to 1; it is a file, bytes, or a dict with either."""
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415

    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    source = io.BytesIO(image) if isinstance(image, bytes) else image
    try:
        with Image.open(source) as opened:
            scaled = opened.convert("RGB").resize((config.image_size, config.image_size))
    except (UnidentifiedImageError, OSError, AttributeError, ValueError) as error:
        raise DataError(f"column {config.image!r}: got something that is no image: {error}") from None
    pixels = torch.frombuffer(bytearray(scaled.tobytes()), dtype=torch.uint8)
    return pixels.reshape(config.image_size, config.image_size, 3).permute(2, 0, 1).float() / 255
