"""Language models and reward models: files, adapters, log-probabilities, generation."""
