"""The static encoder: the mean of a token table's rows, no network at all.

WordLlama's table (https://github.com/dleemiller/WordLlama, MIT) holds 256 numbers for each of
32,000 tokens, taken from the embedding layers of large language models. A short prompt costs about
20 microseconds; its package is never imported, only its files are read.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from router.errors import EncoderError
from router.folders import package_file
from router.text import Vectors, clean

PACKAGE = "wordllama"
RECIPE = "wordllama-256/mean/1"
MAX_TOKENS = 512


class StaticEncoder:
    """Text to unit vectors, float32, shape (n, 256)."""

    def __init__(self, table: Path, tokenizer: Path) -> None:
        """Read the table and its tokenizer.

        Raises:
            EncoderError: a file cannot be read.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load
        from tokenizers import Tokenizer

        try:
            raw = table.read_bytes()
            (rows,) = load(raw).values()
            self._tokenizer = Tokenizer.from_file(str(tokenizer))
        except (OSError, SafetensorError, ValueError) as error:
            raise EncoderError(f"{table}: cannot be read: {error}") from error
        # The file's 16 bits a number are widened once, which takes 16 MB, and not for each prompt.
        self._table: Vectors = rows.astype(np.float32)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._digest = hashlib.sha256(RECIPE.encode() + raw).hexdigest()

    @property
    def digest(self) -> str:
        """Names table and recipe; artefacts pin it."""
        return self._digest

    @property
    def index_width(self) -> int:
        """Dimensions of its vectors."""
        return int(self._table.shape[1])

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Embed ``n`` texts; one without any token becomes zero."""
        out = np.zeros((len(texts), self._table.shape[1]), dtype=np.float32)
        for row, text in enumerate(texts):
            ids = self._tokenizer.encode(clean(text), add_special_tokens=False).ids
            if ids:  # the sum has the mean's direction
                total = np.add.reduce(self._table.take(ids, axis=0), axis=0)
                out[row] = total / np.float32(max(math.sqrt(float(total @ total)), 1e-6))
        return out


def load_static() -> StaticEncoder:
    """The static encoder of the installed package.

    Raises:
        EncoderError: the package is missing.
    """
    table = package_file(PACKAGE, "l2_supercat_256.safetensors")
    tokenizer = package_file(PACKAGE, "l2_supercat_tokenizer_config.json")
    if table is None or tokenizer is None:
        raise EncoderError(
            f"the static encoder's table is missing: pip install --no-deps {PACKAGE}==0.4.0.post1"
        )
    return StaticEncoder(table, tokenizer)
