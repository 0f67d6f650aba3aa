"""What is done with a network: `training`, `validation`, `prediction`, and `runs`, what it leaves behind.

Shared by these: `build` makes it from a config, `training_cases` says on what it is trained, `device`
chooses GPU or CPU, `cuda_graphs` runs it there, `out_of_memory` says what to change where memory runs out.
"""
