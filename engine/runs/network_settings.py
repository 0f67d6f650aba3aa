"""The settings and frozen parts that weights were trained with, compared with those they are used with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from utils.config import Config
from utils.config_keys import WEIGHT_KEYS

NETWORK_KEYS = (*WEIGHT_KEYS, "vae_weights", "image_size")
"""Keys of the config by which the same weights give another probability; with test-time augmentation,
`keep_upright` too."""


def trained_values_that_differ(
    config: Config, run: Config | None, same_vae: bool | None = None
) -> dict[str, Any]:
    """Keys of NETWORK_KEYS in which `config` differs from the run that trained the weights, with that run's
    values.

    With test-time augmentation `keep_upright`, too; without keys that the model does not use. `same_vae` says
    whether the frozen parts are the same, wherever they lie, see `same_parts`; where that is None,
    `vae_weights` is compared as text.
    """
    if run is None:
        return {}
    keys = [*NETWORK_KEYS, *(["keep_upright"] if config.tta else [])]
    unused = config.unused(keys)
    trained, now = run.model_dump(mode="json"), config.model_dump(mode="json")
    differing = {k: trained[k] for k in keys if k not in unused and trained[k] != now[k]}
    if same_vae:
        differing.pop("vae_weights", None)
    elif same_vae is False and "vae_weights" not in differing:
        differing["vae_weights"] = f"{run.vae_weights} as it was then"
    return differing


def same_parts(one: Mapping[str, str], other: Mapping[str, str]) -> bool | None:
    """Whether the parts of a network that both have a hash of are the same; None without such a part."""
    common = one.keys() & other.keys()
    return all(one[name] == other[name] for name in common) if common else None
