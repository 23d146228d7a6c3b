"""The fault table holds what it has to, line by line."""

from __future__ import annotations

from tests.faults.proxy import FAULTS
from tests.faults.table import MODES, Outcome, table

FILTERED = "content filter"
UNHARMED = "missing [DONE]"
"""A finish reason makes an answer whole."""


def expect(row: Outcome) -> None:
    """What this line has to say."""
    if row.fault == FILTERED and row.side == "teacher":
        assert (row.got, row.stored) == ("filtered", "complete"), row
    elif row.side == "student" or row.mode == MODES[0] or row.fault == UNHARMED:
        by = "student" if row.side == "student" and row.fault == UNHARMED else "teacher"
        assert (row.got, row.stored) == (f"whole: {by}", "complete"), row
    elif row.got.startswith("broken: "):
        assert row.stream
        assert row.mode == "released"
        assert (row.got, row.stored) == ("broken: stream_broken", "incomplete"), row
    else:
        assert row.got.startswith(("error 4", "error 5")), row
        assert row.stored == "error", row


async def test_every_line_of_the_fault_table() -> None:
    rows = await table()
    assert len(rows) == 2 * 4 * (len(FAULTS) + 2)
    assert len({row.fault for row in rows}) >= 16
    for row in rows:
        expect(row)
    broken = {row.fault for row in rows if row.got.startswith("broken")}
    assert {"cut mid-answer", "stall mid-answer", "in-band error, then [DONE]"} <= broken
