"""``understudy serve`` with the store switched off, to show what durable capture costs. The product
has no such switch: an answer that is not kept is a fault there."""

from __future__ import annotations

from gateway.capture import Capture
from gateway.cli import main
from gateway.store.records import Captured, Exchange
from gateway.totals import Counts


async def _forget(self: Capture, exchange: Exchange, counts: Counts = ()) -> Captured:
    return Captured.YES


if __name__ == "__main__":
    Capture.put = _forget  # type: ignore[method-assign]
    main()
