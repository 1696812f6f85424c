"""The labelled texts on which the benchmarks train: real ones, on any machine.

TREC (Li & Roth 2002: questions and the type of their answer, six coarse classes) may not be passed on, so it
is read from the folder that PRECEPTOR_TREC names. Without one the texts are first sentences of docstrings of
packages that are installed anyway, and the label is the package.
"""

from __future__ import annotations

import ast
import csv
import importlib.util
import os
import random
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Tables", "write_tables"]

_TREC_VARIABLE = "PRECEPTOR_TREC"
_PACKAGES = ("matplotlib", "networkx", "pandas", "sympy", "torch", "transformers")
_FILES_A_PACKAGE = 100
_SENTENCES_A_PACKAGE = 500
_NUM_WORDS = (6, 24)
_FIRST_SENTENCE = re.compile(r"\s*(.*?[.?!])(?:\s|$)", re.DOTALL)


@dataclass(frozen=True)
class Tables:
    """CSV files with the columns `text` and `label`; no text is in two of them.

    Attributes:
        train: what a student learns from.
        valid: what it is watched on.
        test: what it is judged by.
        source: what the texts are.
    """

    train: Path
    valid: Path
    test: Path
    source: str


def write_tables(folder: Path, *, num_train: int, num_valid: int, num_test: int) -> Tables:
    """Writes three tables of different texts; the same ones on every call.

    Args:
        folder: where to.
        num_train: rows.
        num_valid: rows.
        num_test: rows at most.

    Raises:
        ValueError: there are too few texts.
        OSError: PRECEPTOR_TREC names a folder without TREC's files.
    """
    trec = os.environ.get(_TREC_VARIABLE)
    source = "TREC questions" if trec else "docstrings of packages"
    texts = dict(_trec(Path(trec)) if trec else _docstrings())
    rows = sorted(texts.items())
    random.Random(0).shuffle(rows)
    if len(rows) <= num_train + num_valid:
        raise ValueError(f"texts: got {len(rows)} ({source}), expected over {num_train + num_valid}")
    ends = (num_train, num_train + num_valid, num_train + num_valid + num_test)
    parts = (rows[: ends[0]], rows[ends[0] : ends[1]], rows[ends[1] : ends[2]])
    names = ("train.csv", "valid.csv", "test.csv")
    train, valid, test = (_write(folder / name, part) for name, part in zip(names, parts, strict=True))
    return Tables(train, valid, test, source)


def _write(path: Path, rows: Sequence[tuple[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(rows)
    return path


def _trec(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields questions and their coarse types, from TREC.train and TREC.test."""
    for name in ("TREC.train", "TREC.test"):
        for line in (folder / name).read_text(encoding="latin-1").splitlines():
            label, _, text = line.partition(" ")
            yield text, label.partition(":")[0]


def _docstrings() -> Iterator[tuple[str, str]]:
    """Yields first sentences and the package they come from, which they do not name."""
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        paths = sorted(Path(spec.origin).parent.rglob("*.py"))
        random.Random(0).shuffle(paths)
        sentences = {sentence for path in paths[:_FILES_A_PACKAGE] for sentence in _sentences(path)}
        found = sorted(sentence for sentence in sentences if package not in sentence.lower())
        random.Random(0).shuffle(found)
        yield from ((sentence, package) for sentence in found[:_SENTENCES_A_PACKAGE])


def _sentences(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):  # templates, and tests of parsers
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            match = _FIRST_SENTENCE.match(ast.get_docstring(node) or "")
            sentence = " ".join(match[1].split()) if match else ""
            if _NUM_WORDS[0] <= len(sentence.split()) <= _NUM_WORDS[1]:
                yield sentence
