"""Training, validation, prediction and resuming of a model, and the plan of a run."""
