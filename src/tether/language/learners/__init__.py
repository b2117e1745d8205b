"""What the methods share: optimizers, data order, rollouts, reference log-probabilities."""
