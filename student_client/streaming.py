"""Training examples that stream through Ray Data instead of being held in memory.

Ray Data reads the source piece by piece, files in an order that the seed decides; rows are shuffled among
each other in windows, windows are cut into batches, and each worker prepares its share of every batch, on a
thread ahead of the training steps. So what a batch holds depends on seed and epoch only: not on the number of
workers, nor on where a resumed run begins.
"""

from __future__ import annotations

import itertools
import logging
import queue
import random
import threading
from typing import TYPE_CHECKING, Any

import ray.data
import torch

from student_client.batches import share_of, split_rows
from student_client.data import Splits, classes_of, examples_of, read_examples
from student_client.preparation import Preparation
from student_client.reading import (
    DataError,
    check_columns,
    csv_options,
    files_of,
    format_of,
    image_files,
    read_table,
)
from student_client.row_checks import check_values

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from student_client.batches import Batch
    from student_client.data_config import DataConfig
    from student_client.student_config import StudentConfig

__all__ = ["Stream", "load_streams"]

_NUM_AHEAD = 2  # batches that are prepared before they are asked for
_PUT_POLL_S = 0.2
_BATCH_TIMEOUT_S = 1800.0
_END_TIMEOUT_S = 30.0


def load_streams(config: DataConfig, student: StudentConfig | None) -> Splits:
    """Opens the training source as a stream and reads the validation and test sources whole.

    Raises:
        DataError: a file, column or value is not what the config says.
    """
    if config.train is None or config.valid is None or config.test is None:
        raise DataError("data.train, data.valid, data.test: expected all three with data.stream")
    rows = open_dataset(config.train, config, None)
    classes = config.classes or (() if config.task == "regression" else _labels(rows, config))
    preparation = Preparation(config, student, classes)
    return Splits(
        Stream(config.train, config, preparation, num_rows=rows.count()),
        read_examples(config.valid, preparation, "valid"),
        read_examples(config.test, preparation, "test"),
        preparation.classes,
    )


def _labels(rows: ray.data.Dataset, config: DataConfig) -> list[str]:
    """Returns each class that there is, in one pass."""
    seen: set[str] = set()
    for table in rows.select_columns([config.label]).iter_batches(batch_format="pyarrow"):
        seen.update(classes_of(table[config.label].to_pylist(), config))
    return sorted(seen)


def open_dataset(source: str, config: DataConfig, order: random.Random | None) -> ray.data.Dataset:
    """Opens a source; nothing is read yet.

    Args:
        source: files, a folder or a Hugging Face data set.
        config: names the columns.
        order: shuffles the files; None: by name.

    Raises:
        DataError: it has no such file or column.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    kind = format_of(source, config.format)
    columns = list(config.columns)
    if kind in ("images", "huggingface"):
        if kind == "huggingface":
            return ray.data.from_arrow(read_table(source, config))
        files, classes = image_files(source)
        pairs = list(zip(files, classes, strict=True))
        if order is not None:
            order.shuffle(pairs)
        return ray.data.from_items(
            [{config.image or "image": file, config.label: label} for file, label in pairs]
        )
    names = files_of(source, kind)
    if order is not None:
        order.shuffle(names)
    if kind == "csv":
        rows = ray.data.read_csv(names, **csv_options(columns))
    elif kind == "parquet":
        rows = ray.data.read_parquet(names)
    else:
        rows = ray.data.read_json(names, lines=True)
    check_columns(source, rows.columns() or [], columns)
    return rows.select_columns(columns)


class Stream:
    """A source of examples that is read anew for each epoch; see `student_client.data.ExampleSource`.

    Args:
        source: files, a folder or a Hugging Face data set.
        config: names the columns.
        preparation: turns rows into inputs.
        num_rows: of the source.
    """

    def __init__(self, source: str, config: DataConfig, preparation: Preparation, *, num_rows: int) -> None:
        self._source = source
        self._config = config
        self._preparation = preparation
        self._num_rows = num_rows

    def __len__(self) -> int:
        return self._num_rows

    def example(self, num_rows: int = 2) -> Batch:
        """Returns the first rows."""
        return self._prepare(open_dataset(self._source, self._config, None).take(num_rows))

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yields all rows in order."""
        rows = open_dataset(self._source, self._config, None)
        for table in rows.iter_batches(batch_size=batch_size, batch_format="pyarrow"):
            yield self._prepare(table.to_pylist())

    def shuffled(
        self,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        rank: int = 0,
        world_size: int = 1,
        first_batch: int = 0,
    ) -> Iterator[Batch]:
        """See `student_client.data.ExampleSource.shuffled`."""
        shares = self._shares(batch_size, seed * 1_000_003 + epoch, rank, world_size, first_batch)
        yield from _ahead(self._prepare(share.to_pylist()) for share in shares)

    def _shares(
        self, batch_size: int, seed: int, rank: int, world_size: int, first_batch: int
    ) -> Iterator[pa.Table]:
        """Yields a worker's rows of each batch, before they are prepared."""
        batches_a_window = max(1, round(self._config.shuffle_rows / batch_size))
        rows = open_dataset(self._source, self._config, random.Random(seed))
        windows = rows.iter_batches(
            batch_size=batches_a_window * batch_size, batch_format="pyarrow", prefetch_batches=1
        )
        for number, window in enumerate(windows):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            order = torch.randperm(len(window), generator=generator)
            to_skip = max(first_batch - number * batches_a_window, 0)
            for batch in itertools.islice(split_rows(order, batch_size), to_skip, None):
                yield window.take(share_of(batch, rank, world_size).numpy())

    def _prepare(self, rows: list[dict[str, Any]]) -> Batch:
        check_values(self._source, rows, self._config, numbered=False)
        return examples_of(rows, self._preparation).example(len(rows))


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yields batches that a thread prepares while the one before is worked on."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(_NUM_AHEAD)
    ended = threading.Event()

    def put(item: Batch | BaseException | None) -> None:
        while not ended.is_set():
            try:
                ready.put(item, timeout=_PUT_POLL_S)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for batch in batches:
                put(batch)
                if ended.is_set():
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - raised again where batches are asked for
            put(error)

    thread = threading.Thread(target=work, name="prepare-batches", daemon=True)
    thread.start()
    try:
        while (item := _next_of(ready)) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        ended.set()
        thread.join(_END_TIMEOUT_S)


def _next_of(ready: queue.Queue[Batch | BaseException | None]) -> Batch | BaseException | None:
    try:
        return ready.get(timeout=_BATCH_TIMEOUT_S)
    except queue.Empty:
        raise DataError(
            f"data.stream: got no batch within {_BATCH_TIMEOUT_S:g} s; does Ray have CPUs left to read with?"
        ) from None
