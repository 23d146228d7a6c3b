"""Single exchanges, shown to people; who looked at which is recorded before anything is shown."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from gateway.offload import Offload
from gateway.store.keeping import Keeping, Reading
from gateway.store.repository import Repository


@dataclass(frozen=True, slots=True)
class Readings:
    """Reads through the store's reader, records through its own connection."""

    reader: Repository
    keeping: Keeping
    offload: Offload

    async def exchange(self, exchange_id: str, who: str) -> dict[str, Any] | None:
        """One exchange as plain values; None where there is none.

        Raises:
            StoreError: that somebody looked cannot be recorded, and so nothing is shown.
        """
        return await self.offload.run(self._read, exchange_id, who)

    def _read(self, exchange_id: str, who: str) -> dict[str, Any] | None:
        found = self.reader.of_ids([exchange_id])
        detail = {"exchange": exchange_id, "found": bool(found)}
        self.keeping.add_reading(Reading(time.time(), who, "exchange", detail))
        return dataclasses.asdict(found[0]) if found else None
