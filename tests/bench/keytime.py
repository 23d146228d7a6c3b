"""Does the time of a key's comparison tell anything about the key? A test as dudect makes it.

``make bench-keys``: Reparaz, Balasch, Verbauwhede, *Dude, is my code constant time?* (2017): two
classes of inputs in random order, Welch's t-test on their times; |t| under 4.5 shows no leak.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import time

from gateway.auth import Keyring
from gateway.errors import GatewayError
from gateway.settings import Key

SAMPLES = 200_000
KEY = "us-" + "k" * 43
CLASSES = {
    "differs in its first character": "x" + KEY[1:],
    "differs in its last character": KEY[:-1] + "x",
    "shares nothing": "q" * len(KEY),
}


def measured(ring: Keyring, authorization: str) -> int:
    """Nanoseconds of one refusal."""
    started = time.perf_counter_ns()
    with contextlib.suppress(GatewayError):
        ring.principal(authorization)
    return time.perf_counter_ns() - started


def welch(one: list[int], other: list[int]) -> float:
    """Welch's t statistic."""
    spread = statistics.variance(one) / len(one) + statistics.variance(other) / len(other)
    return float((statistics.fmean(one) - statistics.fmean(other)) / spread**0.5)


def main() -> None:
    """Each class against the others; the slowest tenth is cropped, as dudect does."""
    ring = Keyring([Key(name=f"k{n}", key_env=f"K{n}") for n in range(20)],
                   {f"K{n}": KEY if n == 10 else f"us-{n:043d}" for n in range(20)})  # fmt: skip
    rng = random.Random(1)
    names = list(CLASSES)
    headers = {name: f"Bearer {key}" for name, key in CLASSES.items()}
    times: dict[str, list[int]] = {name: [] for name in names}
    for _ in range(SAMPLES):
        name = rng.choice(names)
        times[name].append(measured(ring, headers[name]))
    cut = sorted(t for values in times.values() for t in values)[int(SAMPLES * 0.9)]
    cropped = {name: [t for t in values if t < cut] for name, values in times.items()}
    print(f"{'wrong key that':34} {'median ns':>10} {'samples':>8}   t against the first")
    for name in names:
        t = welch(cropped[names[0]], cropped[name]) if name != names[0] else 0.0
        print(
            f"{name:34} {statistics.median(cropped[name]):10.0f} {len(cropped[name]):8d} {t:+8.2f}"
        )


if __name__ == "__main__":
    main()
