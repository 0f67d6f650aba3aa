"""From the archives at their source, or a folder of one's own, to images, masks and a split.

`steps` goes through it: `archives` opens a source, `layouts` finds its cases, `split_choice` parts them,
`group_tables` groups them, `writing` and `staging` write them; `source_problems` and `notes` say what is
wrong with them. `phantoms` prepares the data set that is drawn.
"""
