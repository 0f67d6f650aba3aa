"""Many runs at once, each an ordinary train.py: sweeps (`sweep_*`) and accuracy studies (`study*`)."""
