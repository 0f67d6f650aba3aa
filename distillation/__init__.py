"""Distilling TAESD into a Tiny-VAE of half its width; `distill.py` is the entry point.

In the order of the method: `procedural` draws the images; `crops` keeps crops of them with the
teacher's answers; `student` builds the narrow network and writes it out, `narrowing` gives it its
first weights; `training` fits one part, encoder or decoder, to the answers, and `checkpoints` saves
and reads what that needs to resume. `scores` measures one VAE against another, and `report` sets
teacher and student side by side on real cases.
"""
