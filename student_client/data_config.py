"""What a run is trained on, as its config says it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = ["SOURCES", "DataConfig", "DataFormat", "Task", "resolve_source"]

Task = Literal["classification", "regression", "tokens"]
DataFormat = Literal["csv", "parquet", "jsonl", "images", "huggingface"]

PIXELS = "pixel_values"
SOURCES = ("train", "valid", "test", "unlabelled")  # fields of `DataConfig`


class DataConfig(BaseModel):
    """Tables with one example a row, and which of their columns the student and the teacher read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: str | None = Field(
        default=None,
        description="Training examples: a file, folder or Hugging Face data set; or on the command line.",
    )
    valid: str | None = Field(default=None, description="Validation examples; null: split off `train`.")
    test: str | None = Field(default=None, description="Test examples; null: split off `train`.")
    unlabelled: str | None = Field(
        default=None,
        description="Examples without labels, trained on beside `train` by all losses that need none.",
    )
    format: Literal["auto"] | DataFormat = Field(
        default="auto", description="What the sources are; auto: by name and content."
    )
    hf_config: str | None = Field(default=None, description="The configuration of a Hugging Face data set.")
    valid_fraction: float = Field(default=0.1, ge=0, lt=1, description="Of `train`, where `valid` is null.")
    test_fraction: float = Field(default=0.1, ge=0, lt=1, description="Of `train`, where `test` is null.")
    split_seed: int = Field(
        default=0, ge=0, description="Of that division; apart from `seed`, so that students share test sets."
    )
    task: Task = Field(description="What the labels are; tokens: one a word of `words`.")
    label: str = Field(default="label", description="The column of labels.")
    classes: tuple[str, ...] | None = Field(
        default=None, description="The labels' names in the order of the outputs; null: those found, sorted."
    )
    text: str | None = Field(default=None, description="The column of texts that the student reads.")
    text_pair: str | None = Field(default=None, description="The column of a second text, after the first.")
    words: str | None = Field(default=None, description="The column of lists of words, for task tokens.")
    features: dict[str, Literal["int64", "float32"]] = Field(
        default_factory=dict, description="Columns of numbers, given to the student by name."
    )
    image: str | None = Field(
        default=None, description="The column of images (files or bytes); the student gets `pixel_values`."
    )
    image_size: int = Field(default=32, ge=1, description="Height and width that images are scaled to.")
    teacher_text: str | None = Field(
        default=None, description="The column of texts that the teacher reads; null: what the student reads."
    )
    teacher_features: tuple[str, ...] | None = Field(
        default=None,
        description="Which of the student's inputs the teacher reads by name instead of a text; null: all, "
        "where there is no text.",
    )
    vocab_size: int = Field(default=8192, ge=2, description="Buckets that words are hashed into.")
    max_len: int = Field(default=32, ge=1, description="Words (or tokens) of a text that the student reads.")
    stream: bool = Field(
        default=False, description="Whether `train` streams through Ray Data instead of being read whole."
    )
    shuffle_rows: int = Field(
        default=4096, ge=1, description="Rows that are shuffled among each other, where `stream` is true."
    )

    @field_validator("train", "valid", "test", "unlabelled", mode="before")
    @classmethod
    def _take_paths(cls, source: object) -> object:
        return str(source) if isinstance(source, Path) else source

    @model_validator(mode="after")
    def _check_inputs(self) -> Self:
        if not (self.text or self.words or self.features or self.image):
            raise ValueError("text, words, features, image: got none, expected at least one input")
        if (self.task == "tokens") != (self.words is not None):
            raise ValueError("words: expected with task tokens, and with no other")
        if self.words and (self.text or self.text_pair):
            raise ValueError("words: got text or text_pair too, expected one of them")
        if self.text_pair and not self.text:
            raise ValueError("text_pair: got a column, expected one only with `text`")
        if self.teacher_text and self.teacher_features is not None:
            raise ValueError("teacher_text, teacher_features: got both, expected at most one")
        known = {*self.features, *([PIXELS] if self.image else [])}
        unknown = sorted(set(self.teacher_features or ()) - known)
        if unknown:
            raise ValueError(f"teacher_features: got {unknown}, expected some of {sorted(known)}")
        if self.stream and not (self.valid and self.test):
            raise ValueError("stream: got true, expected `valid` and `test` too: a stream is not split")
        if self.stream and self.unlabelled:
            raise ValueError("unlabelled: got a source with stream, expected null: streams have labels")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read, each once."""
        return tuple(dict.fromkeys((self.label, *self.input_columns)))

    @property
    def input_columns(self) -> tuple[str, ...]:
        """Those that are read of examples without labels."""
        read = (
            self.text,
            self.text_pair,
            self.words,
            *self.features,
            self.image,
            self.teacher_text,
        )
        return tuple(dict.fromkeys(column for column in read if column))


def resolve_source(source: str, folder: Path) -> str:
    """Returns a source with a path that holds anywhere; what can be no local path is returned as it is.

    Args:
        source: a path, relative to `folder`, or the id of something on the Hugging Face hub.
        folder: what relative paths start from.
    """
    path = folder / source
    looks_local = source.startswith((".", "/", "~")) or bool(path.suffix) or source.count("/") > 1
    if path.exists() or (looks_local and not source.startswith("~")):
        return str(path.resolve())
    return str(Path(source).expanduser()) if source.startswith("~") else source
