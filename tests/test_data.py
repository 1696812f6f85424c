"""Examples that are read whole: formats, inputs, splits, what is refused."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import csv, parquet
from transformers import BertTokenizerFast

from student_client.data import Batch, DataError, Examples, hash_words, load_splits
from student_client.data_config import DataConfig, resolve_source
from student_client.preparation import IGNORED, Preparation
from student_client.student_config import StudentConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

ROWS = [
    {"text": f"word{number} again", "n": number, "label": "odd" if number % 2 else "even"}
    for number in range(40)
]
TEXTS: dict[str, Any] = {"task": "classification", "text": "text"}


def write_rows(path: Path, rows: Sequence[dict[str, Any]] = ROWS) -> Path:
    """Writes rows in the format of the suffix; no suffix: a Hugging Face data set on disk."""
    table = pa.Table.from_pylist(list(rows))
    if path.suffix == ".csv":
        csv.write_csv(table, path)
    elif path.suffix == ".parquet":
        parquet.write_table(table, path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import datasets  # noqa: PLC0415 - heavy

        datasets.Dataset.from_list(list(rows)).save_to_disk(path)
    return path


def write_images(folder: Path) -> Path:
    """Writes two images of each of two classes, every pixel one value."""
    for number in range(4):
        file = folder / ("odd" if number % 2 else "even") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 5), (51 * number, 0, 255)).save(file)
    return folder


def whole(path: Path, student: StudentConfig | None = None, **fields: Any) -> Batch:
    """Returns all rows of a source in its order, as one batch."""
    config = DataConfig(train=str(path), valid=str(path), test=str(path), **fields)
    (batch,) = load_splits(config, student).valid.batches(1000)
    return batch


@pytest.fixture
def tokenized_student(tmp_path: Path) -> StudentConfig:
    """A student whose tokenizer splits "playing" in two."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "we", "are"]
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(words))
    folder = tmp_path / "tokenizer"
    BertTokenizerFast(vocab=str(vocab)).save_pretrained(folder)
    return StudentConfig(factory="tests.toy_student:ToyStudent", tokenizer=str(folder))


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.jsonl", "on_disk"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    batch = whole(write_rows(tmp_path / name), **TEXTS, features={"n": "int64"})
    assert batch.teacher == [row["text"] for row in ROWS]
    assert batch.student["n"].tolist() == list(range(40))
    assert batch.labels.tolist() == [number % 2 for number in range(40)]
    assert batch.student["input_ids"].shape == (40, 2)


def test_a_folder_of_files_is_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_rows(tmp_path / "b.csv", ROWS[20:])
    write_rows(tmp_path / "a.csv", ROWS[:20])
    assert whole(tmp_path, **TEXTS).teacher == [row["text"] for row in ROWS]


def test_splits_are_disjoint_whole_and_the_same_for_a_seed(tmp_path: Path) -> None:
    source = str(write_rows(tmp_path / "t.csv"))
    config = DataConfig(train=source, split_seed=3, features={"n": "int64"}, **TEXTS)
    numbers = []
    for _ in range(2):
        splits = load_splits(config)
        parts = (splits.train, splits.valid, splits.test)
        numbers.append([next(part.batches(100)).student["n"].tolist() for part in parts])
    assert numbers[0] == numbers[1]
    assert [len(part) for part in numbers[0]] == [32, 4, 4]
    assert sorted(itertools.chain(*numbers[0])) == list(range(40))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3)).tolist()
    assert numbers[0] == [order[8:], order[:4], order[4:8]]


def test_an_image_folder_gives_pixels_and_its_folders_as_classes(tmp_path: Path) -> None:
    batch = whole(write_images(tmp_path), task="classification", image="image", image_size=4)
    pixels = batch.student["pixel_values"]
    assert pixels.shape == (4, 3, 4, 4)
    assert batch.labels.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(pixels[:, 0, 0, 0], torch.tensor([0.0, 0.4, 0.2, 0.6]))
    assert isinstance(batch.teacher, dict)
    assert torch.equal(batch.teacher["pixel_values"], pixels)


def test_images_of_a_column_may_be_bytes_and_the_teacher_may_read_a_text(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (255, 0, 0)).save(file, "PNG")
    rows = [{"picture": file.getvalue(), "caption": "red", "label": "r"}]
    path = write_rows(tmp_path / "t.parquet", rows)
    batch = whole(path, task="classification", image="picture", image_size=2, teacher_text="caption")
    assert batch.teacher == ["red"]
    assert batch.student["pixel_values"][0, :, 0, 0].tolist() == [1.0, 0.0, 0.0]


def test_a_student_of_several_inputs_gets_all_and_the_teacher_those_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "t.csv")
    batch = whole(path, **TEXTS, features={"n": "float32"}, teacher_features=("n",))
    assert set(batch.student) == {"input_ids", "attention_mask", "n"}
    assert isinstance(batch.teacher, dict)
    assert batch.teacher["n"].tolist() == [float(number) for number in range(40)]


def test_texts_go_through_the_students_own_tokenizer(
    tmp_path: Path, tokenized_student: StudentConfig
) -> None:
    rows = [{"a": "we are", "b": "playing", "label": "x"}, {"a": "we", "b": "we", "label": "y"}]
    path = write_rows(tmp_path / "t.csv", rows)
    batch = whole(path, tokenized_student, task="classification", text="a", text_pair="b")
    assert batch.student["input_ids"].tolist() == [[2, 7, 8, 3, 5, 6, 3], [2, 7, 3, 7, 3, 0, 0]]
    assert batch.student["attention_mask"].sum(-1).tolist() == [7, 5]
    assert batch.teacher == ["we are playing", "we we"]


def test_tags_stand_at_the_first_token_of_their_word(
    tmp_path: Path, tokenized_student: StudentConfig
) -> None:
    rows = [
        {"words": ["we", "are", "playing"], "label": ["O", "O", "V"]},
        {"words": ["playing"], "label": ["V"]},
    ]
    path = write_rows(tmp_path / "t.parquet", rows)
    batch = whole(path, tokenized_student, task="tokens", words="words")
    none = IGNORED
    assert batch.labels.tolist() == [[none, 0, 0, 1, none, none], [none, 1, none, none, none, none]]
    assert batch.teacher == ["we are playing", "playing"]
    hashed = whole(path, task="tokens", words="words")
    assert hashed.labels.tolist() == [[0, 0, 1], [1, none, none]]


def test_batches_are_trimmed_to_their_longest_row(tmp_path: Path) -> None:
    rows = [{"text": "one", "label": "x"}, {"text": "one two three", "label": "y"}]
    path = str(write_rows(tmp_path / "t.csv", rows))
    train = load_splits(DataConfig(train=path, valid=path, test=path, **TEXTS)).train
    assert sorted(batch.student["input_ids"].shape[1] for batch in train.batches(1)) == [1, 3]


def test_workers_see_every_example_of_a_batch_once(tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "t.csv"))
    config = DataConfig(train=path, valid=path, test=path, task="classification", features={"n": "int64"})
    examples = load_splits(config).train
    batches = list(examples.shuffled(16, seed=1, epoch=0))
    shares = [list(examples.shuffled(16, seed=1, epoch=0, rank=rank, world_size=2)) for rank in range(2)]
    for batch, first, second in zip(batches, *shares, strict=True):
        both = torch.cat([first.student["n"], second.student["n"]])
        assert sorted(both.tolist()) == sorted(batch.student["n"].tolist())


def test_a_worker_without_a_row_of_its_own_has_anothers() -> None:
    examples = Examples({"n": torch.arange(10)}, tuple("abcdefghij"), torch.arange(10))
    shares = [list(examples.shuffled(8, seed=1, epoch=0, rank=rank, world_size=5)) for rank in range(5)]
    rows = [share[-1].student["n"].tolist() for share in shares]
    assert [len(each) for each in rows] == [1] * 5
    assert rows[2:] == [rows[0], rows[1], rows[0]]


def test_a_batch_in_parts_is_the_batch() -> None:
    examples = Examples({"n": torch.arange(5)}, tuple("abcde"), torch.arange(5))
    parts = examples.example(5).parts(3)
    assert [len(part.labels) for part in parts] == [2, 2, 1]
    assert list(itertools.chain(*(part.teacher for part in parts))) == list("abcde")
    assert torch.cat([part.student["n"] for part in parts]).tolist() == list(range(5))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", r"bad\.csv: got columns \['a', 'b'\], expected \['label', 'ids'\]"),
        ("ids,label\n1,\n", r"row 1: got no value in \['label'\]"),
        (
            "ids,label\nx,even\n" + "1,odd\n" * 20,
            r"bad\.csv, row 1, column 'ids': got 'x', expected a number",
        ),
        ("ids,label\n1,a\n", "data.valid: got no examples|data.train: got no examples"),
    ],
)
def test_a_wrong_table_is_told_by_file_column_and_row(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(content)
    config = DataConfig(train=str(path), task="classification", features={"ids": "int64"})
    with pytest.raises(DataError, match=message):
        load_splits(config)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_label_that_is_not_finite_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(f"ids,label\n1,1.5\n2,{value}\n")
    with pytest.raises(DataError, match=rf"row 2, column 'label': got '{value}', expected a"):
        whole(path, task="regression", features={"ids": "int64"})


def test_a_class_that_training_lacks_is_named(tmp_path: Path) -> None:
    config = DataConfig(task="classification", features={"n": "int64"})
    with pytest.raises(DataError, match="column 'label': got class 'new'"):
        Preparation(config, None, ["old"]).labels({"label": ["new"]})
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        whole(tmp_path / "nowhere.csv", **TEXTS)


def test_words_are_hashed_into_their_range() -> None:
    assert hash_words("", 10, 5) == [1]
    words = hash_words("One two, two three four five", 10, 4)
    assert len(words) == 4
    assert words[1] == words[3]
    assert all(1 <= word < 10 for word in words)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "expected at least one input"),
        ({"words": "w"}, "words: expected with task tokens"),
        ({"text": "t", "teacher_features": ("n",)}, "teacher_features: got"),
        ({"text": "t", "stream": True}, "expected `valid` and `test`"),
        ({"text_pair": "t", "features": {"n": "int64"}}, "text_pair"),
    ],
)
def test_a_config_that_can_not_be_meant_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(task="classification", **fields)


def test_sources_are_paths_only_where_they_look_like_it(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    assert resolve_source("there", tmp_path) == str(tmp_path / "there")
    assert resolve_source("t.csv", tmp_path) == str(tmp_path / "t.csv")
    assert resolve_source("org/set", tmp_path) == "org/set"
    assert resolve_source("/x/t", tmp_path) == "/x/t"
    assert resolve_source("~/t", tmp_path) == str(Path.home() / "t")


def test_a_class_number_that_stands_for_none_is_refused(tmp_path: Path) -> None:
    import datasets  # noqa: PLC0415 - heavy

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    rows = {"text": ["x", "y"], "label": [1, -1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match=r"row 2, column 'label': got class -1, expected 0 to 1"):
        whole(tmp_path / "set", **TEXTS)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"words": "we are", "label": ["A", "B"]}, "column 'words': got 'we are', expected a list"),
        ({"words": ["we", "are"], "label": "A B"}, "column 'label': got 'A B', expected a list"),
        ({"words": ["we", "are"], "label": ["A"]}, r"got lists of lengths \[2, 1\], expected equal ones"),
        ({"words": [], "label": []}, "expected a list with one a word"),
    ],
)
def test_words_and_their_labels_are_lists_of_one_length(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    path = write_rows(tmp_path / "t.jsonl", [row])
    with pytest.raises(DataError, match=rf"t\.jsonl, row 1, .*{message}"):
        whole(path, task="tokens", words="words")


def test_other_files_in_a_folder_and_capital_suffixes_disturb_nobody(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write_rows(tmp_path / "set" / "part.parquet").rename(tmp_path / "set" / "PART.PARQUET")
    (tmp_path / "set" / "README.md").write_text("what this is")
    assert len(whole(tmp_path / "set", **TEXTS).labels) == len(ROWS)
    write_rows(tmp_path / "t.csv").rename(tmp_path / "T.CSV")
    assert len(whole(tmp_path / "T.CSV", **TEXTS).labels) == len(ROWS)
