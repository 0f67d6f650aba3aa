"""Accuracy studies: systems by seeds and splits, each scored in the same ways."""
