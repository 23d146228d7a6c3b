"""Numerical libraries on one thread: the matrices here are small, and helpers wait by spinning.

On a machine that is busy with something else (a gateway beside a nightly run, workers beside each
other) OpenBLAS' and OpenMP's helpers spin for cores that they do not get: a logistic regression on
640 x 768 took 2.8 s instead of 0.1 s. One thread also gives the same last bits on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """While a fit lasts, in this process."""
    # What is loaded later is not limited.
    import sklearn.cluster
    import sklearn.linear_model  # noqa: F401

    with threadpool_limits(limits=1):
        yield


def stay_on_one_thread() -> None:
    """From now on, for what is loaded by now: for a server, whose products take microseconds."""
    threadpool_limits(limits=1)
