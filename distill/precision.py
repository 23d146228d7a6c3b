"""The precision in which this machine trains a language model."""

from __future__ import annotations

from typing import Any


def training_dtype() -> Any:
    """``torch.bfloat16`` where the machine has kernels for it, else ``torch.float32``.

    Weights, optimizer state and what is written are the same; only the arithmetic differs. On a
    CPU without AVX-512, where oneDNN has no kernels for bfloat16, torch multiplies it element by
    element: a step took 73 s where single precision takes 4.
    """
    import torch

    if torch.cuda.is_available():
        return torch.bfloat16
    # What torch asks itself before it hands a matrix product to oneDNN; no public name says it.
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
