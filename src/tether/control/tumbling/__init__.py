"""A hopper that may turn over, for learning somersaults.

Importing this package registers it with Gymnasium; tether's own commands know it without an
import::

    import gymnasium
    import tether.control.tumbling

    env = gymnasium.make("tether/TumblingHopper-v0")
"""

from __future__ import annotations

import gymnasium

ID = "tether/TumblingHopper-v0"
"""The environment's Gymnasium id."""

if ID not in gymnasium.registry:
    gymnasium.register(ID, "tether.control.tumbling.hopper:TumblingHopper", max_episode_steps=1000)
