"""JAX reads its settings once: tether's own must be in place before any test starts it."""

import tether.control  # noqa: F401
