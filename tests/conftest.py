"""Shared test settings."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Machines are noisy: speed belongs in benchmarks, never in a timed test.
settings.register_profile(
    "understudy", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150
)
settings.load_profile("understudy")
