"""One process of a `TalkingTrainer` under torchrun; the first one saves what was learnt.

torchrun --nproc-per-node 2 -m tests.trainer_process MODEL_FOLDER ADDRESS OUTPUT ROWS_A_PROCESS
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from tests.test_trainer import fresh_model, trainer_of


def main() -> None:
    """Trains."""
    folder, address, output, num_rows = sys.argv[1:]
    torch.set_num_threads(1)
    # Without momentum a step is the gradient: what was scaled wrongly would show.
    arguments: dict[str, Any] = {"per_device_train_batch_size": int(num_rows), "optim": "sgd", "max_steps": 2}
    trainer = trainer_of(fresh_model(), Path(folder), address, Path(output), **arguments)
    trainer.train()
    if trainer.is_world_process_zero():
        learnt = {**trainer.model.state_dict(), **trainer.talking.state_dict(prefix="talking.")}
        torch.save(learnt, Path(output) / "learnt.pt")


if __name__ == "__main__":
    main()
