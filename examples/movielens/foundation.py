"""Trains the foundation recommender on the training ratings of all genres, once, and keeps it in a cache.

The file beside the weights says from which settings and ratings they came; another setting trains anew. This
module knows no students and no service.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from examples.movielens.models import Recommender

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from examples.movielens.data import MovieLens, Ratings, Split

__all__ = ["Foundation", "FoundationConfig", "FoundationMetrics", "rmse", "train_foundation"]

_RECIPE_VERSION = 1
_EVALUATION_BATCH_SIZE = 2048


class FoundationConfig(BaseModel):
    """How the foundation model is built and trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding_dim: int = Field(default=32, ge=1, description="Width of a user's and an item's embedding.")
    hidden_size: int = Field(default=128, ge=1, description="Width of the hidden states.")
    num_layers: int = Field(default=4, ge=2, description="Residual blocks.")
    dropout: float = Field(default=0.3, ge=0, lt=1, description="Dropout of embeddings and blocks.")
    batch_size: int = Field(default=1024, ge=1, description="Ratings a step.")
    learning_rate: float = Field(default=3e-3, gt=0, description="Peak of the one-cycle schedule.")
    weight_decay: float = Field(default=0.1, ge=0, description="AdamW's decoupled weight decay.")
    num_epochs: int = Field(
        default=6, ge=1, description="Length of the schedule, in passes over the ratings."
    )
    patience_epochs: int = Field(
        default=2, ge=1, description="Epochs without a better validation before it stops."
    )
    seed: int = Field(default=0, ge=0, description="Of the initial weights, the order and the dropout.")


class FoundationMetrics(BaseModel):
    """What came of the training; errors are root mean squared, in stars."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    valid_rmse: float = Field(description="On the validation ratings, by which the epoch was chosen.")
    test_rmse: float = Field(description="On the test ratings, looked at once.")
    best_epoch: int = Field(description="The epoch whose weights were kept, from 1.")
    num_epochs: int = Field(description="Epochs run.")
    train_s: float = Field(description="Seconds of training.")


@dataclass(frozen=True)
class Foundation:
    """A trained foundation model on disk.

    Attributes:
        weights: the safetensors file with its state.
        kwargs: arguments of `Recommender` that fit it.
        metrics: what came of the training.
        reused: whether the cache had it.
    """

    weights: Path
    kwargs: dict[str, Any]
    metrics: FoundationMetrics
    reused: bool


class _Card(BaseModel):
    """The file beside the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings_sha256: str
    weights_sha256: str
    kwargs: dict[str, Any]
    metrics: FoundationMetrics


def train_foundation(
    movielens: MovieLens,
    split: Split,
    weights: Path,
    *,
    config: FoundationConfig | None = None,
    console: Console | None = None,
) -> Foundation:
    """Trains the foundation model, or takes it from the cache when settings and ratings are the same.

    The same settings on the same machine with the same number of threads give the same weights.

    Args:
        movielens: the data set, for its sizes and genres.
        split: its training part is learnt, its validation part chooses the epoch.
        weights: where the safetensors file is or goes; the card goes beside it as `.json`.
        config: how to train; None: the defaults.
        console: where progress is shown; None: rich's own.
    """
    config = config or FoundationConfig()
    settings_sha256 = _settings_sha256(movielens, split, config)
    card = _read_card(weights.with_suffix(".json"))
    if card and card.settings_sha256 == settings_sha256 and _file_sha256(weights) == card.weights_sha256:
        return Foundation(weights, card.kwargs, card.metrics, reused=True)
    kwargs = _model_kwargs(movielens, split, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Recommender(**kwargs)
        model.embed.remember(split.train, movielens.genres)
        metrics = _fit(model, split, config, console)
    _save(model, weights, settings_sha256, kwargs, metrics)
    return Foundation(weights, kwargs, metrics, reused=False)


def _save(
    model: Recommender,
    weights: Path,
    settings_sha256: str,
    kwargs: dict[str, Any],
    metrics: FoundationMetrics,
) -> None:
    """Writes weights, then card, each in one step: a card never speaks of weights that are not there."""
    weights.parent.mkdir(parents=True, exist_ok=True)
    partial = weights.with_name(f"{weights.name}.{os.getpid()}.partial")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, partial)
    card = _Card(
        settings_sha256=settings_sha256,
        weights_sha256=_file_sha256(partial) or "",
        kwargs=kwargs,
        metrics=metrics,
    )
    partial.replace(weights)
    partial.write_text(card.model_dump_json(indent=2), encoding="utf-8")
    partial.replace(weights.with_suffix(".json"))


def rmse(model: nn.Module, ratings: Ratings) -> float:
    """Returns the root mean squared error of a recommender, in stars, its output kept within 1 to 5.

    The model is left in the mode, training or evaluation, it came in.
    """
    was_training = model.training
    model.eval()
    squared = 0.0
    with torch.no_grad():
        for rows in torch.split(torch.arange(len(ratings)), _EVALUATION_BATCH_SIZE):
            batch = ratings.select(rows)
            predicted = model(user=batch.user, item=batch.item).squeeze(-1).clamp(1, 5)
            squared += float((predicted - batch.rating).double().square().sum())
    model.train(was_training)
    return math.sqrt(squared / max(len(ratings), 1))


def _model_kwargs(movielens: MovieLens, split: Split, config: FoundationConfig) -> dict[str, Any]:
    return {
        "num_users": movielens.num_users,
        "num_items": movielens.num_items,
        "num_genres": len(movielens.genre_names),
        "embedding_dim": config.embedding_dim,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_layers,
        "dropout": config.dropout,
        "mean_rating": round(float(split.train.rating.mean()), 4),
    }


def _fit(
    model: Recommender, split: Split, config: FoundationConfig, console: Console | None
) -> FoundationMetrics:
    """Trains until the schedule ends or validation stops getting better; leaves the best epoch's weights."""
    start_s = time.perf_counter()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    num_steps = -(-len(split.train) // config.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.num_epochs * num_steps, pct_start=0.1
    )
    best_rmse, best_epoch, best_state, epoch = float("inf"), 0, model.state_dict(), 0
    with _progress(console) as progress:
        task = progress.add_task("foundation model", total=config.num_epochs * num_steps, note="")
        for epoch in range(1, config.num_epochs + 1):
            for rows in torch.split(torch.randperm(len(split.train)), config.batch_size):
                _step(model, split.train.select(rows), optimizer)
                schedule.step()
                progress.advance(task)
            valid_rmse = rmse(model, split.valid)
            progress.update(task, note=f"epoch {epoch}, validation RMSE {valid_rmse:.3f}")
            if valid_rmse < best_rmse:
                best_rmse, best_epoch, best_state = valid_rmse, epoch, copy.deepcopy(model.state_dict())
            elif epoch - best_epoch >= config.patience_epochs:
                break
    model.load_state_dict(best_state)
    return FoundationMetrics(
        valid_rmse=best_rmse,
        test_rmse=rmse(model, split.test),
        best_epoch=best_epoch,
        num_epochs=epoch,
        train_s=round(time.perf_counter() - start_s, 1),
    )


def _step(model: Recommender, batch: Ratings, optimizer: torch.optim.Optimizer) -> None:
    predicted = model(user=batch.user, item=batch.item).squeeze(-1)
    loss = functional.mse_loss(predicted, batch.rating)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


def _settings_sha256(movielens: MovieLens, split: Split, config: FoundationConfig) -> str:
    """Returns SHA-256 over the settings and all ratings that decide the weights and the metrics."""
    digest = hashlib.sha256(f"{_RECIPE_VERSION} {config.model_dump_json()}".encode())
    for part in (split.train, split.valid, split.test):
        for tensor in (part.user, part.item, part.rating):
            digest.update(tensor.contiguous().numpy().tobytes())
    digest.update(movielens.genres.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _file_sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


def _read_card(path: Path) -> _Card | None:
    """Reads the card; None, so that the model is trained anew, when it is absent or broken."""
    try:
        return _Card.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return None
