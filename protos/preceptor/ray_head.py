"""A Ray of one machine that takes jobs, beside whatever other Rays there are.

    python -m preceptor.ray_head NUM_CPUS NUM_GPUS

Prints {"address": "HOST:PORT"} and ends when its standard input is closed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ray.cluster_utils import Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

_OBJECT_STORE_BYTES = 1 << 30
_CURRENT_CLUSTER = "ray_current_cluster"


def main() -> None:
    """Runs it."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    arguments = {
        "num_cpus": int(sys.argv[1]),
        "num_gpus": int(sys.argv[2]),
        "object_store_memory": _OBJECT_STORE_BYTES,
        "include_dashboard": True,
        "dashboard_port": None,  # the first free one from 8265
        "dashboard_agent_listen_port": None,  # a free one
    }
    # Ray tells a job that its cluster is the one that a file in its folder names, or else any on the machine.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        with _same_default_cluster():
            cluster = Cluster(
                initialize_head=True,
                head_node_args={**arguments, "temp_dir": folder},
                shutdown_at_exit=True,
            )
        (Path(folder) / _CURRENT_CLUSTER).write_text(cluster.address)
        sys.stdout.write(json.dumps({"address": cluster.address}) + "\n")
        sys.stdout.flush()
        sys.stdin.read()
        with _same_default_cluster():
            cluster.shutdown()


@contextlib.contextmanager
def _same_default_cluster() -> Iterator[None]:
    """Leaves the machine's default cluster, which `ray.init()` and `ray status` go to, what it was."""
    root = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    file = root / "ray" / _CURRENT_CLUSTER
    before = file.read_bytes() if file.exists() else None
    try:
        yield
    finally:
        if before is not None:
            file.write_bytes(before)
        else:
            file.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
