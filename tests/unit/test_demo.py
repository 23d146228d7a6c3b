"""What the demo makes of the machine it runs on."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.demo.vllm import cpu_dtype


@pytest.mark.parametrize(
    ("cpuinfo", "dtype"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse2 avx2 fma\n", "float32"),
        ("processor\t: 0\nflags\t\t: fpu sse2 avx2 fma avx512f avx512bw\n", "bfloat16"),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", "bfloat16"),
        (None, "bfloat16"),
    ],
    ids=["x86 without AVX-512", "x86 with AVX-512", "Arm", "no Linux"],
)
def test_the_students_precision_is_what_the_cpu_is_fast_at(
    tmp_path: Path, cpuinfo: str | None, dtype: str
) -> None:
    place = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        place.write_text(cpuinfo)
    assert cpu_dtype(place) == dtype
