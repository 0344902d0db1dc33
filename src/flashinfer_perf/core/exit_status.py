"""The exit status of a run."""

from __future__ import annotations

from collections import Counter

from flashinfer_perf.core.record import Record, Status

SUCCESS = 0
FAILURE = 1
NOTHING_PARSED = 2
INTERRUPTED = 130


class Tally:
    """Counts records by status, and knows what the process should exit with."""

    def __init__(self) -> None:
        self.counts: Counter[Status] = Counter()
        self.allowed_mismatches = 0

    def add(self, record: Record) -> None:
        self.counts[record.status] += 1
        self.allowed_mismatches += record.mismatch_allowed

    @property
    def exit_status(self) -> int:
        """0 when at least one record is ok and all are ok or unsupported; 130 after Ctrl-C; 2 when no line could be
        understood; else 1.

        A mismatch that was allowed counts as ok: whoever allows it wants the time and judges the output elsewhere.
        """
        total = self.counts.total()
        fine = self.counts[Status.OK] + self.allowed_mismatches
        if self.counts[Status.INTERRUPTED]:
            return INTERRUPTED
        if self.counts[Status.INVALID] == total:
            return NOTHING_PARSED
        return SUCCESS if fine and fine + self.counts[Status.UNSUPPORTED] == total else FAILURE
