"""What `benchmark.py` measures: Wave-GMS as this repository runs it against the plain recipe.

Start with `candidate`, the interface of what is compared. `reference` is the published recipe done
the plain way, `ours` is what train.py, valid.py and predict.py do, or a U-Net. `comparison` starts
each in a `separate_process` and lets them take turns. `step_parts` says where a training step
spends time and arithmetic, `growth` how time and memory grow with the image's side and the number
of cases, `single_changes` what each change for the CPU brings alone. `report` writes tables,
CSV files and plots.
"""
