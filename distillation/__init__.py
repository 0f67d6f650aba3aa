"""Distilling TAESD into a Tiny-VAE of half its width; `distill.py` is the entry point.

In the order of the method: `crops` are procedural images with the teacher's answers to them;
`student` builds the narrow network and writes it out, `narrowing` gives it its first weights;
`training` fits one part, encoder or decoder, to the answers, and `checkpoints` says what of it is kept
and read again. `scores` measure a VAE against another, and `report` sets teacher and student side by
side on real cases.
"""
