"""Training, evaluation and the plan of a run."""
