"""A Ray cluster of two nodes that serves a teacher, for tests; in a process of its own, since its Ray is.

    python -m tests.toy_cluster CONFIG.json

Prints the service's address and the number of nodes as JSON, and ends when its standard input is closed.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from services.teacher.config import ServiceConfig
from services.teacher.environment import serve_environment

_OBJECT_STORE_BYTES = 100 << 20


def main() -> None:
    config = ServiceConfig.model_validate_json(Path(sys.argv[1]).read_text())
    os.environ.update(serve_environment(config))
    import ray  # noqa: PLC0415 - Ray's environment is set first
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    from preceptor.ray_head import _same_default_cluster  # noqa: PLC0415
    from services.teacher.local import serving  # noqa: PLC0415

    memory = {"object_store_memory": _OBJECT_STORE_BYTES}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        with _same_default_cluster():
            cluster = Cluster(
                initialize_head=True,
                # No CPU: replicas have to be on the other node.
                head_node_args={"num_cpus": 0, "temp_dir": folder, "include_dashboard": False, **memory},
            )
            cluster.add_node(num_cpus=4, **memory)
        os.environ["RAY_ADDRESS"] = cluster.address
        try:
            with serving(config) as address:
                facts = {"address": address, "nodes": sum(node["Alive"] for node in ray.nodes())}
                sys.stdout.write(json.dumps(facts) + "\n")
                sys.stdout.flush()
                sys.stdin.read()
        finally:
            ray.shutdown()
            with _same_default_cluster():
                cluster.shutdown()


if __name__ == "__main__":
    main()
