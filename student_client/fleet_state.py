"""What is known of a fleet's students: its own state on disk, and what their runs have written."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from student_client.locks import folder_lock
from student_client.records import METRICS_FILE, RESULT_FILE, read_new_lines
from student_client.whole_files import write_json

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FleetFiles", "Progress", "RunProgress", "StudentState"]

_STATE_FILE = "fleet.json"
_STOP_PREFIX = "stop-"

State = Literal["waiting", "running", "done", "failed", "stopped"]


@dataclass
class StudentState:
    """Where a student is.

    Attributes:
        state: waiting for its turn, or what came of it.
        digest: of the config it was last started with.
        submission_id: of its last job; empty before the first.
        attempts: jobs so far, since it was last asked to run.
        error: why it failed, or why its last job did; empty if none did.
        started_s: when its last job was submitted, in seconds of the epoch.
        fresh: names the wish, if there is one, that an earlier run is deleted first. All its jobs are told,
            since nobody knows how far those came that were lost; they heed it once.
    """

    state: State = "waiting"
    digest: str = ""
    submission_id: str = ""
    attempts: int = 0
    error: str = ""
    started_s: float = 0.0
    fresh: str = ""


@dataclass(frozen=True)
class Progress:
    """How far a student is, from its run's files; None where nothing is known yet."""

    step: int | None = None
    num_steps: int | None = None
    loss: float | None = None
    metric: str | None = None
    valid: float | None = None
    examples_per_s: float | None = None
    waiting_share: float | None = None
    test: float | None = None


class RunProgress:
    """Follows a run's folder, reading only what is new."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._position = 0
        self._last: dict[str, dict[str, Any]] = {}

    def read(self) -> Progress:
        """Returns how far the run is now."""
        path = self._folder / METRICS_FILE
        if path.exists() and path.stat().st_size < self._position:
            self._position, self._last = 0, {}  # it was started afresh
        lines, self._position = read_new_lines(path, self._position)
        for line in lines:
            if line["kind"] == "resumed":  # what was told of later steps does not hold
                kept = {kind: each for kind, each in self._last.items() if each["step"] <= line["step"]}
                self._last = kept
            else:
                self._last[line["kind"]] = line
        steps, epoch = self._last.get("steps", {}), self._last.get("epoch", {})
        latest = max((steps, epoch), key=lambda line: line.get("step", -1))
        return Progress(
            step=latest.get("step"),
            num_steps=latest.get("num_steps"),
            loss=latest.get("losses", {}).get("loss"),
            metric=epoch.get("metric"),
            valid=epoch.get("valid"),
            examples_per_s=steps.get("examples_per_s"),
            waiting_share=latest.get("waiting_share"),
            test=self.result().get("test"),
        )

    def result(self) -> dict[str, Any]:
        """Returns what came of the run; empty if it has not ended."""
        with contextlib.suppress(OSError, json.JSONDecodeError):
            result: dict[str, Any] = json.loads((self._folder / RESULT_FILE).read_text())
            return result
        return {}

    def ended_since(self, start_s: float) -> bool:
        """Whether the run ended well after a time, in seconds of the epoch."""
        with contextlib.suppress(OSError):
            return (self._folder / RESULT_FILE).stat().st_mtime >= start_s
        return False


@dataclass
class FleetFiles:
    """A fleet's folder.

    Attributes:
        folder: holds state, lock and the runs' configs.
        configs: the runs' configs, sent along with each job.
    """

    folder: Path
    configs: Path = field(init=False)

    def __post_init__(self) -> None:
        self.configs = self.folder / "configs"

    def log(self, name: str) -> Path:
        """Returns where the log of a student's last job is kept, once that has ended."""
        return self.folder / "logs" / f"{name}.log"

    def load(self) -> dict[str, StudentState]:
        """Returns the students' states by name; empty if the fleet never ran."""
        path = self.folder / _STATE_FILE
        if not path.exists():
            return {}
        known = json.loads(path.read_text())
        # It was a boolean once.
        return {
            name: StudentState(**each | {"fresh": str(each.get("fresh") or "")})
            for name, each in known.items()
        }

    def save(self, states: dict[str, StudentState]) -> None:
        """Writes the states in one piece."""
        write_json(self.folder / _STATE_FILE, {name: asdict(each) for name, each in states.items()})

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other processes from running the fleet while open.

        Raises:
            FolderLockedError: one already does.
        """
        return folder_lock(
            self.folder, "another process runs this fleet; `preceptor fleet status --watch` shows it"
        )

    def ask_to_stop(self, name: str) -> None:
        """Leaves word for whoever runs the fleet that a student is to be stopped."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / (_STOP_PREFIX + name)).touch()

    def is_asked_to_stop(self, name: str) -> bool:
        """Whether there is such word."""
        return (self.folder / (_STOP_PREFIX + name)).exists()

    def forget_to_stop(self, name: str) -> None:
        """Takes it back."""
        (self.folder / (_STOP_PREFIX + name)).unlink(missing_ok=True)
