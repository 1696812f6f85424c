from __future__ import annotations

import csv
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from examples.study import sources, tasks
from examples.study.digits import Digits, in_domain, load_digits
from examples.study.many_domains import HELD_OUT_RADIANS, draw_angles, in_some_domain, partly_inverted
from examples.study.models import DigitStudent, DigitTeacher
from examples.study.training import train_digit_teacher
from student_client.config import TrainConfig
from student_client.run import StudentRun

if TYPE_CHECKING:
    from pathlib import Path

needs_digits = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("sklearn") is None,
    reason="scikit-learn, which carries the digits, is not installed",
)
IMAGES = torch.arange(128.0).reshape(2, 8, 8) / 128


def test_domains_keep_every_pixel() -> None:
    assert torch.equal(in_domain(IMAGES, "upright"), IMAGES)
    assert torch.equal(1 - in_domain(IMAGES, "inverted"), IMAGES)
    rotated = in_domain(IMAGES, "rotated")
    assert torch.equal(torch.rot90(rotated, k=3, dims=(1, 2)), IMAGES)
    assert torch.equal(rotated[:, -1, 0], IMAGES[:, 0, 0])


def test_an_unknown_domain_is_refused() -> None:
    with pytest.raises(ValueError, match="domain: got 'mirrored'"):
        in_domain(IMAGES, "mirrored")  # type: ignore[arg-type]


def test_the_teachers_images_are_turned_every_way_but_the_students() -> None:
    degrees = torch.rad2deg(draw_angles(10_000)) % 360
    first, last = (math.degrees(each) for each in HELD_OUT_RADIANS)
    assert first < 90 < last
    assert not ((degrees > first + 0.01) & (degrees < last - 0.01)).any()
    seen = torch.histc(degrees, bins=36, min=0, max=360) > 0
    assert int(seen.sum()) == 32  # of 36 tens of degrees four are held out, and two in half


def test_the_teachers_images_are_never_inverted_as_a_whole() -> None:
    inverted = partly_inverted(torch.zeros(10_000, 8, 8)).mean((1, 2))
    assert float(inverted.max()) < 0.9
    assert float((inverted > 0).float().mean()) > 0.4


def test_images_in_some_domain_are_all_different() -> None:
    images = in_some_domain(IMAGES[:1].expand(100, -1, -1))
    assert images.shape == (100, 8, 8)
    assert len(torch.unique(images.flatten(1), dim=0)) == 100


@needs_digits
def test_a_seed_makes_the_same_teacher_and_leaves_other_draws_alone() -> None:
    torch.manual_seed(5)
    first = train_digit_teacher(3, num_epochs=2).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
    again = train_digit_teacher(3, num_epochs=2).state_dict()
    assert all(torch.equal(again[name], first[name]) for name in first)
    other = train_digit_teacher(4, num_epochs=2).state_dict()
    assert not torch.equal(other["head.weight"], first["head.weight"])


def test_the_teacher_does_not_attend_to_masked_positions() -> None:
    block = DigitTeacher().eval().get_submodule("blocks.0")
    states = torch.randn(2, 6, 96)
    mask = torch.tensor([[True] * 4 + [False] * 2] * 2)
    changed = states.clone()
    changed[:, 4:] += 1
    assert torch.allclose(block(states, mask=mask)[:, :4], block(changed, mask=mask)[:, :4])
    assert torch.allclose(block(states, mask=mask)[:, :4], block(states[:, :4]), atol=1e-6)
    assert not torch.allclose(block(states)[:, :4], block(changed)[:, :4])


def test_the_student_is_a_small_part_of_the_teacher() -> None:
    student, teacher = DigitStudent(), DigitTeacher()
    pixel_values = torch.rand(3, 3, 8, 8)
    assert student(pixel_values).shape == teacher(pixel_values).shape == (3, 10)
    sizes = [sum(each.numel() for each in model.parameters()) for model in (student, teacher)]
    assert sizes[0] < sizes[1] / 20


@needs_digits
def test_no_image_is_in_two_parts() -> None:
    split = load_digits()
    parts: list[Digits] = [split.teacher, split.train, split.test]
    numbers = torch.cat([part.number for part in parts])
    assert len(set(numbers.tolist())) == len(numbers) == 1797
    assert [len(part) for part in parts] == [700, 700, 397]


def _config(folder: Path, **fields: Any) -> TrainConfig:
    content: dict[str, Any] = {
        "name": "digits",
        "output": folder / "out",
        "student": {"factory": "examples.study.models:DigitStudent", "num_classes_kwarg": "num_classes"},
        "data": {name: folder / f"{name}.csv" for name in ("train", "valid", "test")}
        | {"task": "classification", "image": "image", "image_size": 8},
        "epochs": 20,
        "optimizer": {"lr": 0.003},
    }
    return TrainConfig.model_validate(content | fields)


@needs_digits
def test_a_run_reads_a_domains_images_and_learns_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(sources.CACHE_VARIABLE, str(tmp_path / "cache"))
    tasks.digits(tmp_path / "aside", num_labels=200, seed=0, domain="inverted")
    (tmp_path / "aside").rename(tmp_path / "tables")  # images stay where they are
    run = StudentRun(_config(tmp_path / "tables"))
    pixels = next(iter(run.splits.test.batches(397))).student["pixel_values"]
    assert torch.allclose(pixels[:, 0], in_domain(load_digits().test.pixels, "inverted"), atol=0.5 / 255)
    for _ in range(20):
        list(run.train_epoch())
    assert run.finish()["test"] > 0.7  # one in ten by chance


@needs_digits
def test_unlabelled_images_have_no_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sources.CACHE_VARIABLE, str(tmp_path / "cache"))
    tasks.digits(tmp_path, num_labels=50, seed=0, domain="rotated")
    with (tmp_path / "unlabelled.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 600
    assert list(rows[0]) == ["image"]
