"""Everything that is neither data nor model: configuration, metrics, checkpoints, reports."""
