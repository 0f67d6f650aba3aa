"""Many runs at once: sweeps over settings, seeds and folds, each run an ordinary train.py."""
