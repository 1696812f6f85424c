"""The teacher of `benchmarks.chaos`: it names its proxy's port where it would name its own.

It imports Ray, so its environment has to be set before.
"""

from __future__ import annotations

from services.teacher.app import TeacherDeployment

__all__ = ["PROXY_OFFSET", "ProxiedTeacher"]

PROXY_OFFSET = 20  # from a port to that of the proxy before it


class ProxiedTeacher(TeacherDeployment):
    """Tells the directory, and so the students, of the port of the proxy before it."""

    def _start_reporting(self, port: int) -> None:
        super()._start_reporting(port + PROXY_OFFSET)
