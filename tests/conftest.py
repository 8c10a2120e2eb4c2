"""Settings of all tests; that it lies here lets them import what lies beside it."""

from __future__ import annotations

import hypothesis

# Hypothesis by itself fails an example that takes 200 ms, and a test whose first examples take a second to be made: on
# a machine with other loads both say nothing of the tool. What else it settles on, also for CI servers, stays.
hypothesis.settings.register_profile(
    "loaded", hypothesis.settings(), deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("loaded")
