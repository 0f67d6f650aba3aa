"""The page docs/config.md, from the descriptions of the keys in `utils.config`:

python -m utils.config_page > docs/config.md
"""

from __future__ import annotations

import json
import textwrap

from utils.config import Config
from utils.config_keys import CHANGEABLE_ON_RESUME, WAVE_GMS_KEYS

SECTIONS = {
    "pickle_file_path": "Data",
    "model": "Model",
    "w_rec": "Losses",
    "epochs": "Optimisation",
    "GPUs": "Hardware",
    "snapshot_path": "Run folder, validation and scoring",
    "phase": "Accepted from published files",
}
"""Headings of docs/config.md, by the first key below each."""


def describe_fields() -> str:
    """All keys with type, default and meaning, as the Markdown of docs/config.md."""
    lines = [
        "# Configuration",
        "",
        "A run is described by one flat YAML file. `base:` names another file, relative to this one,",
        "whose keys are read first; `key=value` on the command line comes last. `null` stands for the",
        "default on this page, whatever the base says. Unknown keys, wrong types and contradictory",
        "settings are refused before anything runs. The resolved config is saved with the run.",
        "",
        "The keys of the published GMS and Wave-GMS files are accepted, and a published Wave-GMS file runs",
        "as it is, an older one with `vae_model: litevae-s` too. GMS files do not name a network: unless you add",
        "`vae_model: sd_vae` and the `vae_weights` of a Stable Diffusion VAE, they mean Wave-GMS here, with a",
        "warning.",
        "",
        "```yaml",
        "base: base.yaml                 # all other keys come from there",
        "pickle_file_path: datasets/my-set/my-set_train_test_names.json",
        "snapshot_path: ckpt/my_experiment",
        "epochs: 300",
        "```",
        "",
        "A run can be resumed with other values of the keys marked *on resume*; the split file and the frozen",
        "weights must hold the same, wherever they lie, and the data be prepared with the same `--window`,",
        "`--label` or `--any-label`.",
        "",
        *textwrap.wrap(
            f"Only `model: wave-gms` uses {', '.join(f'`{key}`' for key in sorted(WAVE_GMS_KEYS))}. The plan of a run "
            "with another model warns where these are changed, except of `vae_weights`.",
            width=105,
        ),
        "",
        "This page is written by `python -m utils.config_page > docs/config.md`.",
    ]
    for name, field in Config.model_fields.items():
        if name in SECTIONS:
            lines += ["", f"## {SECTIONS[name]}", ""]
            lines += ["| key | default | on resume | meaning |", "|---|---|---|---|"]
        default = (
            "required" if field.is_required() else f"`{json.dumps(field.default, default=str)}`"
        )
        resume = "yes" if name in CHANGEABLE_ON_RESUME else ""
        lines.append(f"| `{name}` | {default} | {resume} | {field.description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(describe_fields(), end="")
