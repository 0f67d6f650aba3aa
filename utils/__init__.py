"""What all share: config, checkpoints, logs, errors, files, pictures."""
