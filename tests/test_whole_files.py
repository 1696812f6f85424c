"""What a run writes is whole or not there, on a disk without room and by a process that is killed."""

from __future__ import annotations

import contextlib
import re
import resource
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from student_client.checkpoints import Checkpoints, ResumeError
from student_client.export import export_student
from student_client.plots import draw_losses
from student_client.records import METRICS_FILE, MetricsFile, config_digest
from student_client.run import StudentRun
from student_client.whole_files import write_json, write_text
from tests.test_export import TEXT_STUDENT, ended_run
from tests.test_train_run import make_config, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["table"]

ROOM_BYTES = 1024
KILL = "os.kill(os.getpid(), signal.SIGKILL)"


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """Has every file of this process end after 1 KiB, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save_checkpoint(run: StudentRun, path: Path) -> None:
    Checkpoints(path.parent.parent, config_digest(run.config)).save(7, run.state())


WRITERS: dict[str, Callable[[StudentRun, Path], None]] = {
    "checkpoint_000000007/state.pt": save_checkpoint,
    "student.safetensors": lambda run, path: run.save_student(path),
    "losses.png": lambda _, path: draw_losses([], path),
    "result.json": lambda _, path: write_json(path, {"text": "x" * 2 * ROOM_BYTES}),
    "config.yaml": lambda _, path: write_text(path, "x" * 2 * ROOM_BYTES),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_told_with_the_files_name_and_leaves_what_was_there(
    table: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "run" / name
    write_text(path, "as it was")
    run = StudentRun(make_config(table, None))
    with no_room(), pytest.raises(OSError, match=re.escape(f"File too large: '{path}'")):
        WRITERS[name](run, path)
    assert path.read_text() == "as it was"
    assert list(path.parent.iterdir()) == [path]
    WRITERS[name](run, path)  # there is room again
    assert path.stat().st_size > ROOM_BYTES
    assert list(path.parent.iterdir()) == [path]


def test_metrics_that_the_disk_has_no_room_for_are_told_with_the_files_name(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"No space left on device: '.*{METRICS_FILE}'"):
        MetricsFile(tmp_path).write({"kind": "steps"})


def test_a_writer_that_is_killed_leaves_what_was_there_and_its_rest_goes_with_the_next(
    tmp_path: Path,
) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"step": 1})
    lines = [
        "import os, pathlib, signal, sys",
        "from student_client.whole_files import whole_file",
        "with whole_file(pathlib.Path(sys.argv[1])) as aside:",
        "    aside.write_text('{')",
        f"    {KILL}",
    ]
    command = [sys.executable, "-c", "\n".join(lines), str(path)]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL
    assert path.read_text() == '{\n  "step": 1\n}'
    assert len(list(tmp_path.iterdir())) == 2
    write_json(path, {"step": 2})
    assert list(tmp_path.iterdir()) == [path]


def test_the_newest_whole_checkpoint_is_loaded(tmp_path: Path) -> None:
    workers = [Checkpoints(tmp_path, "digest", rank=rank, world_size=2) for rank in range(2)]

    def save(step: int, *ranks: int) -> None:
        for rank in ranks:
            workers[rank].save(step, {"rng": torch.tensor(rank), "cuda_rng": None, "step": step})

    assert workers[0].load() is None
    save(1, 0, 1)
    save(2, 0, 1)
    save(3, 0)  # the other worker was killed
    save(4, 1)
    for worker in workers:
        state = worker.load()
        assert state is not None
        assert state["step"] == 2
        assert worker.passed_over == ["checkpoint_000000004", "checkpoint_000000003"]
    save(3, 0, 1)
    assert (workers[0].load() or {})["step"] == 3


def test_a_node_that_does_not_share_the_runs_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"output: got .*/away, which is not on this node"):
        Checkpoints(tmp_path / "away", "digest").load()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_checkpoint_that_is_cut_off_is_passed_over(table: Path, tmp_path: Path, share: float) -> None:
    run = StudentRun(make_config(table, None))
    checkpoints = Checkpoints(tmp_path, config_digest(run.config))
    checkpoints.save(1, run.state())
    checkpoints.save(2, run.state())
    path = tmp_path / "checkpoint_000000002" / "state.pt"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    state = checkpoints.load()
    assert state is not None
    assert checkpoints.passed_over == ["checkpoint_000000002"]
    shutil.rmtree(tmp_path / "checkpoint_000000001")
    with pytest.raises(ResumeError, match="none of its checkpoints can be read"):
        checkpoints.load()


def test_the_last_two_checkpoints_are_kept_and_no_rest_of_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_000000002").mkdir()  # of a worker that was killed
    checkpoints = Checkpoints(tmp_path, "digest")
    for step in (1, 3, 5):
        checkpoints.save(step, {})
        checkpoints.forget_older()
    later = Checkpoints(tmp_path, "digest")
    later.load()
    later.save(7, {})
    later.forget_older()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint_000000005",
        "checkpoint_000000007",
    ]


@pytest.mark.parametrize(
    ("ending", "kept"), [("raise OSError(5, 'no')", "export"), (KILL, "export-before-*")]
)
def test_a_folder_that_is_not_put_in_its_place_leaves_what_was_there(
    tmp_path: Path, ending: str, kept: str
) -> None:
    for name in ("export", "temporary/student"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "name").write_text(name)
    lines = [
        "import os, pathlib, signal, sys, tempfile",
        "from student_client.whole_files import put_folder",
        "def fail(event, arguments):",
        "    if event == 'os.rename' and str(arguments[0]).endswith('student'):",
        f"        {ending}",
        "sys.addaudithook(fail)",
        "folder = pathlib.Path(sys.argv[1])",
        "put_folder(folder / 'temporary' / 'student', folder / 'export')",
    ]
    command = [sys.executable, "-c", "\n".join(lines), str(tmp_path)]
    assert subprocess.run(command, check=False, timeout=60, stderr=subprocess.DEVNULL).returncode
    (place,) = tmp_path.glob(kept)
    assert (place / "name").read_text() == "export"
    assert (tmp_path / "temporary" / "student" / "name").read_text() == "temporary/student"
    assert len(list(tmp_path.iterdir())) == 2


def test_an_export_that_the_disk_has_no_room_for_leaves_the_earlier_one(tmp_path: Path) -> None:
    run = ended_run(tmp_path, TEXT_STUDENT)
    output = tmp_path / "export"
    export_student(run, output, kind="safetensors")
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    with no_room(), pytest.raises(OSError, match=re.escape(f"File too large: '{output}'")):
        export_student(run, output, kind="torch-export", force=True)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert not list(tmp_path.glob(".export-*"))
    export_student(run, output, kind="safetensors", force=True)
