"""Data: what a data set is, and how it is read for training. Prepared ones lie in folders beside this file.

`prepare` is the command that makes one that `catalogue` knows, or one's own, from files (`preparation`,
`image_files`), and checks it (`checks`). `splits` and `held_out` say what its cases are for; `cases`,
`loading` and `augmentation` make arrays and batches of them.
"""
