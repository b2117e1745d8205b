"""All that a policy needs to know of its environment, and can know where it is not installed.

:func:`policy_space` and :func:`flatten_observation` say what it sees; :func:`space_to_json` and
:func:`space_from_json` carry the spaces in its file.
"""

from tether.control.envs.arrays import flatten_observation, policy_space
from tether.control.envs.spaces_json import space_from_json, space_to_json

__all__ = ["flatten_observation", "policy_space", "space_from_json", "space_to_json"]
