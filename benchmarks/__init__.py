"""What `benchmark.py` measures: Wave-GMS as this repository runs it against the plain recipe.

Start with `candidates`: the reference, ours and a U-Net behind one interface; each lives in a
`separate_process`. `reference_loop` is the published recipe done the plain way. `step_parts` says
where a training step spends time and arithmetic, `growth` how both grow with the image's side and
the number of cases. `report` writes tables, CSV files and plots.
"""
