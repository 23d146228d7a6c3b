"""Values that nobody changes, of which every request makes several.

The type checker holds them frozen. The interpreter does not: it would set each field by a call of
its own, so that making an exchange, with 28 fields, took four times as long.

Source: docs.python.org/3/library/dataclasses.html#frozen-instances.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as value
else:
    from dataclasses import dataclass

    def value(*, frozen: bool, slots: bool):
        """``dataclass``, for the type checker; hashed by its fields, as frozen ones are."""
        return dataclass(slots=slots, unsafe_hash=frozen)


__all__ = ["value"]
