"""RLHF: PPO, REINFORCE, RLOO and GRPO against a reward, on a KL penalty to the reference."""
