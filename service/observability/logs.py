"""The format of the service's log: text or JSON, one line per record, on standard error, with the request's id.

Ray Serve sets up its own loggers; see `deployment.py`. Knows no Ray.
"""

import logging
from typing import Literal

from pythonjsonlogger.orjson import OrjsonFormatter

from service.observability.telemetry import current_request_id

LogFormat = Literal["text", "json"]

#: The packages whose loggers are set up: ours, and the one that sends our traces.
PACKAGES = ("service", "topk_model", "opentelemetry")
TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure(log_format: LogFormat, level: str, *, replica: str) -> None:
    """Set up the loggers of `PACKAGES` for the whole process.

    Args:
        replica: name of this process's replica, for JSON.
    """
    handler = logging.StreamHandler()
    handler.addFilter(with_request_id)
    handler.setFormatter(json_formatter(replica) if log_format == "json" else logging.Formatter(TEXT_FORMAT))
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


def json_formatter(replica: str) -> logging.Formatter:
    """One object per line: time, level, logger, message, replica, and the record's extra fields, like a request's."""
    return OrjsonFormatter(
        ["levelname", "name", "message"],
        rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
        static_fields={"replica": replica},
        timestamp="time",
    )


def with_request_id(record: logging.LogRecord) -> bool:
    """Add the id of the request that a record belongs to, if the record does not name it."""
    request_id = current_request_id()
    if request_id is not None and not hasattr(record, "request_id"):
        record.request_id = request_id
    return True
