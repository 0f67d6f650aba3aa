"""Many runs at once: `sweeps` and accuracy `studies` of `trials`, each an ordinary run of train.py.

And results of several runs together: those of folds (`cross_validation`), and of several models on several
data sets (`cross_domain`).
"""
