"""Sweeps: one config with many settings, listed (`plan`) or searched by Optuna (`search`, `optuna_*`)."""
