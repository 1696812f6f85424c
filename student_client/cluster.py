"""What a run needs of the Ray that it is to run on, told before it starts there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import ray
from ray.exceptions import RayError

from student_client.credentials import TOKEN_VARIABLE, has_token_variable

if TYPE_CHECKING:
    from student_client.config import TrainConfig

__all__ = ["check_resources", "check_token", "resources_of"]

_ANSWER_TIMEOUT_S = 60.0


def resources_of(config: TrainConfig) -> dict[str, float]:
    """Returns what each of a run's workers takes of Ray's resources."""
    resources = {"CPU": config.cpus_per_worker}
    return {**resources, "GPU": config.gpus_per_worker} if config.gpus_per_worker else resources


def check_resources(config: TrainConfig) -> None:
    """Makes sure that the Ray this process is connected to, which does not grow, can run a run's workers.

    Raises:
        ValueError: it has too little of something.
    """
    there = ray.cluster_resources()
    for name, value in resources_of(config).items():
        needed = value * config.worker_range[0]
        if needed > there.get(name, 0):
            raise ValueError(
                f"num_workers, {name.lower()}s_per_worker: got {needed:g} {name}s in all, expected at most "
                f"{there.get(name, 0):g}, which this Ray has"
            )


def check_token(config: TrainConfig) -> None:
    """Makes sure that a token that comes from this process's environment is in that of Ray's workers, too.

    They do not get it from here: a Ray that was there before has an environment of its own, and what is
    sent along can be read by whoever sees the cluster.

    Raises:
        ValueError: it is not.
    """
    if config.teacher is None or config.teacher.options.token_file is not None or not has_token_variable():
        return
    name = TOKEN_VARIABLE
    # Nested, so that it is sent as it is: what the run needs there is for the run to find out.
    answer = ray.remote(num_cpus=0)(lambda: bool(os.environ.get(name))).remote()
    try:
        is_there = ray.get(answer, timeout=_ANSWER_TIMEOUT_S)
    except RayError:
        ray.cancel(answer, force=True)
        return
    if not is_there:
        raise ValueError(
            f"{name}: workers at RAY_ADDRESS do not see it; name teacher.options.token_file, a file that "
            "their nodes have, or unset it where the teacher asks for none"
        )
