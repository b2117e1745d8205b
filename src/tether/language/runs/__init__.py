"""From settings to a run: load the model and the data, build the learner, train, resume."""
