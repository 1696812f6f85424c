"""One student of `benchmarks.fleet` by itself: its teacher in its own process, no Ray.

    python -m benchmarks.fleet_solo RUN.json SERVICE.json STATE.pt

Loads the teacher, trains the student against it through a socket on loopback, and saves what was trained.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks.bare_server import server_in_this_process
from services.teacher.config import ServiceConfig
from student_client.config import TrainConfig
from student_client.run import StudentRun


def main() -> int:
    """Trains; returns the exit status."""
    run_file, service_file, state_file = map(Path, sys.argv[1:])
    config = TrainConfig.model_validate_json(run_file.read_text())
    service = ServiceConfig.model_validate_json(service_file.read_text())
    torch.set_num_threads(1)
    with server_in_this_process(service):
        run = StudentRun(config)
        while run.epoch < config.epochs:
            for _ in run.train_epoch():
                pass
        torch.save(run.objective.state_dict(), state_file)
        run.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
