"""What a run shows: metrics, sinks, progress, samples, plots and reports."""
