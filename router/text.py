"""What of a text is embedded, the same for every encoder."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MAX_CHARS = 4096

Vectors = npt.NDArray[np.float32]


def clean(text: str) -> str:
    """Lone surrogates replaced, white space folded, length bounded."""
    safe = text[: MAX_CHARS * 2].encode("utf-8", "replace").decode("utf-8")
    return " ".join(safe.split())[:MAX_CHARS]
