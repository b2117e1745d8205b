"""Processes, devices' memory, the cache folder, and parameters as arrays."""
