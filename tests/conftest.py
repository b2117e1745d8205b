"""JAX reads its settings once: tether's own must be in place before any test starts it."""

from tether.control import configure_jax

configure_jax()
