"""Many runs at once: sweeps (`sweep_*`) and accuracy studies (`study*`), each run an ordinary train.py.

And results of several runs together: those of folds (`cross_validation`), and of several models on several
data sets (`cross_domain`).
"""
