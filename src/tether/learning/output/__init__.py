"""What a run writes while it trains: metrics, sinks, progress and samples."""
