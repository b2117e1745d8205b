"""Learning a policy from comparisons of trajectory segments (Christiano et al. 2017)."""
