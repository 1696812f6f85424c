"""Logs as JSON: an object a line, for whoever collects them. The audit log has its own; see `audit`."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

    from services.teacher.config import ServiceConfig

__all__ = ["JsonFormatter", "write_logs_of"]


_OURS = "services"  # where the loggers of this service's modules are
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """Makes a line of a record: time, level, logger, message, teacher, replica, conversation, turn, error.

    Conversation and turn are there where the record is of one (`extra`), the error where it has a traceback.

    Args:
        teacher: the service's name.
        replica: HOST:PORT, "directory", or empty as long as that is not known.

    Attributes:
        replica: see above.
    """

    def __init__(self, teacher: str, replica: str = "") -> None:
        super().__init__()
        self._teacher = teacher
        self.replica = replica

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "teacher": self._teacher,
            "replica": getattr(record, "replica", self.replica),
            "conversation": getattr(record, "conversation", None),
            "turn": getattr(record, "turn", None),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps({name: value for name, value in line.items() if value not in (None, "")})


def write_logs_of(config: ServiceConfig, replica: str = "", stream: TextIO | None = None) -> JsonFormatter:
    """Has this process write its logs as the operator wants them; what Ray itself logs is Ray's.

    Args:
        config: the operator's.
        replica: as in `JsonFormatter`.
        stream: where to; None: stderr.

    Returns:
        What makes the lines, if they are JSON, so that it can be told the replica.
    """
    formatter, root = JsonFormatter(config.name, replica), logging.getLogger()
    is_json = config.signals.logs == "json"
    if is_json or not root.handlers:  # where nobody else writes lines, Python writes warnings only
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter if is_json else logging.Formatter(_TEXT))
        root.handlers[:] = [handler]
    logging.getLogger(_OURS).setLevel(logging.INFO)
    return formatter
