"""Pictures and pages on finished and running runs: learning curves and reports."""
