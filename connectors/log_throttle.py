"""A logging filter against repetition: a client library that logs 150 warnings for one outage says each thing once."""

from __future__ import annotations

import logging
import re
from collections import OrderedDict

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LARGEST = 256  # different texts remembered; the one seen longest ago makes room


class LogThrottle(logging.Filter):
    """Passes each text once in ``every_s`` seconds and counts the rest.

    Texts that differ only in numbers (time-outs, back-offs, correlation ids) are the same text. A text that comes back
    after a pause says how many like it were left out. Errors keep their level; time is the log record's own.
    """

    def __init__(self, every_s: float = 60.0) -> None:
        super().__init__()
        self._every_s = every_s
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self.suppressed = 0

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        key = f"{record.name} {_NUMBER.sub('#', text)}"
        last, left_out = self._seen.get(key, (float("-inf"), 0))
        if record.created - last < self._every_s:
            self._seen[key] = (last, left_out + 1)
            self.suppressed += 1
            return False
        self._seen[key] = (record.created, 0)
        self._seen.move_to_end(key)
        if len(self._seen) > _LARGEST:
            self._seen.popitem(last=False)
        if left_out:
            record.msg, record.args = f"{text} ({left_out} more like this left out)", None
        return True


_throttles: dict[str, LogThrottle] = {}


def throttle(package: str) -> LogThrottle:
    """Put one common filter on every logger of ``package`` that exists now; call again after it made more.

    A filter on the package's own logger would not do: it is not asked for records of the loggers below it.
    """
    shared = _throttles.setdefault(package, LogThrottle())
    for name in list(logging.root.manager.loggerDict):
        if name == package or name.startswith(f"{package}."):
            logging.getLogger(name).addFilter(shared)  # adds it only once
    return shared
