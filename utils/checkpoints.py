"""Weights in and out: the trainable parts of a system, in the published form.

`.pth` holds {part: state dict} for the parts `model`, `vae_model` and `skff_model`, `.safetensors`
the same with keys `part.key`. Files of the published Wave-GMS and GMS load, and load nothing but
tensors (`weights_only=True`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.config_keys import WEIGHT_KEYS
from utils.errors import UserError, first_line, listed
from utils.files import atomic_write
from utils.runs import BEST_WEIGHTS
from utils.tensor_files import load_tensors, save_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

    from models.base import SegmentationModel
    from utils.config import Config

    Weights = dict[str, dict[str, Tensor]]

SHOWN = 8


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over the names and values of a module's weights."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def frozen_hashes(system: SegmentationModel) -> dict[str, str]:
    """SHA-256 of the weights of each frozen part, by its name."""
    return {name: weights_sha256(part) for name, part in system.frozen().items()}


def save_weights(
    path: Path,
    system: SegmentationModel,
    half: bool = False,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write the trainable parts of `system` to `path`, a `.pth` or `.safetensors` file.

    With `half`, numbers are kept in 16 bits (fp16), half the size; they load as any others. `metadata`
    goes into a `.safetensors`, see `read_metadata`.

    Raises:
        UserError: the name ends in neither, or a finite weight is too large for 16 bits, or is NaN.
    """
    from safetensors.torch import save

    weights = {
        name: {
            key: _halved(value, f"{name}.{key}") if half else value.detach().cpu().contiguous()
            for key, value in part.state_dict().items()
        }
        for name, part in system.parts().items()
    }
    if _is_safetensors(path):
        flat = {
            f"{name}.{key}": value for name, part in weights.items() for key, value in part.items()
        }
        atomic_write(path, save(flat, metadata))
    else:
        save_tensors(path, weights)


def read_metadata(path: Path) -> dict[str, str]:
    """What was written into a `.safetensors` beside its weights; empty for a `.pth`, or where no file is."""
    from safetensors import safe_open

    if not (_is_safetensors(path) and path.is_file()):
        return {}
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _instead(path: Path) -> str:
    """Where `path` is the folder of a run, that its weights are a file in it."""
    file = path / BEST_WEIGHTS
    return f", a folder: name the file in it, {file.name}" if file.is_file() else ""


def load_weights(
    path: Path, system: SegmentationModel, key: str = "model_weight", config: Config | None = None
) -> None:
    """Copy the weights in `path`, which the config names under `key`, into the trainable parts of `system`.

    `config`, that of `system`, is for the error: it is compared with the one beside the weights.

    Raises:
        UserError: no such file; no readable weights in it; or keys that are missing, unexpected or
            of another shape, all of which the one error lists by part, or the keys of the config in which
            the run that wrote it differs. The system is then unchanged.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"no weights at {path.absolute()}{_instead(path)}; train a model (sh train.sh) or set `{key}:` to a "
            "checkpoint"
        )
    parts = system.parts()
    found = {
        name: _without_prefix(weights, parts[name]) if name in parts else weights
        for name, weights in _read(path).items()
    }
    problems = [
        problem
        for name in dict.fromkeys([*parts, *found])
        for problem in _mismatches(
            name, found.get(name), parts[name].state_dict() if name in parts else None
        )
    ]
    if problems:
        if config is not None and (differing := _differing_keys(path, config)):
            raise UserError(f"{path} does not fit this model: {differing}")
        of_gms = (
            set(found) == {"model"}
            and "vae_model" in parts
            and found["model"].keys() == parts["model"].state_dict().keys()
        )
        gms = ". Are they of GMS? Then set vae_model=sd_vae, and vae_weights to its VAE"
        raise UserError(
            f"{path} does not fit this model: {'; '.join(problems)}. Compare {', '.join(WEIGHT_KEYS)} with those of "
            f"the run that wrote these weights{gms if of_gms else ''}"
        )
    with torch.no_grad():
        for name, part in parts.items():
            part.load_state_dict(found.get(name, {}))


def _differing_keys(path: Path, config: Config) -> str:
    """How the config beside the weights differs from `config` in WEIGHT_KEYS; '' where none says so."""
    from utils.config import load_config

    try:
        run = load_config(path.with_name("config.yaml"))
    except UserError:
        return ""
    keys = WEIGHT_KEYS if run.model == config.model else ("model",)
    differing = [key for key in keys if getattr(run, key) != getattr(config, key)]
    if not differing:
        return ""
    theirs, ours = (
        " ".join(f"{key}={_as_written(getattr(each, key))}" for key in differing)
        for each in (run, config)
    )
    return (
        f"by the config.yaml beside it, these weights are of {theirs}, and here it is {ours}. Set the same here, or "
        "name weights of such a network"
    )


def _as_written(value: Any) -> str:
    """A value of the config as on the command line."""
    if value is None:
        return "null"
    return str(list(value)).replace(" ", "") if isinstance(value, tuple) else str(value)


def _halved(value: Tensor, name: str) -> Tensor:
    """Floating-point values in 16 bits, others as they are."""
    kept = value.detach().cpu().contiguous()
    if not kept.is_floating_point():
        return kept
    halved = kept.half()
    if kept.isnan().any():
        raise UserError(
            f"the weight {name!r} holds values that are no numbers: these weights are damaged"
        )
    too_large = kept[kept.isfinite() & ~halved.isfinite()]  # a constant mask may hold -inf
    if too_large.numel():
        raise UserError(
            f"the weight {name!r} reaches {too_large.abs().max().item():g}, 16 bits hold at most 65504: "
            "keep these weights as they are (best_model.pth)"
        )
    return halved


def _is_safetensors(path: Path) -> bool:
    if path.suffix not in (".pth", ".safetensors"):
        raise UserError(f"{path}: weights are kept as .pth or .safetensors, not {path.suffix!r}")
    return path.suffix == ".safetensors"


def _read(path: Path) -> Weights:
    """Tensors of a file by part and key; what is not a state dict (an epoch, an optimiser) is left out."""
    from safetensors.torch import load_file

    is_safetensors = _is_safetensors(path)
    try:
        if is_safetensors:
            weights: Weights = {}
            for name, value in load_file(path).items():
                part, _, key = name.partition(".")
                weights.setdefault(part, {})[key] = value
            return weights
        content: Any = load_tensors(path)
    except Exception as error:  # safetensors' errors share no base
        raise UserError(f"{path} holds no readable weights: {first_line(error)}") from error

    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds a {type(content).__name__}; expected a dict of state dicts, "
            "{'model': {...}, ...}"
        )
    if content.keys() >= {"weights", "optimizer", "progress"}:
        raise UserError(
            f"{path} is the state of a training, from which it is resumed: name the weights beside it, best_model.pth"
        )
    return {str(name): part for name, part in content.items() if _is_state_dict(part)}


def _is_state_dict(part: Any) -> bool:
    """Whether it holds tensors by name. An empty dict may be of anything, such as a scaler not in use."""
    import torch

    if not isinstance(part, dict) or not part:
        return False
    return all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in part.items()
    )


def _without_prefix(weights: dict[str, Tensor], part: nn.Module) -> dict[str, Tensor]:
    """The weights of `part`, without the `module.` that DataParallel puts before each of its keys."""
    prefix = "module."
    if any(key.startswith(prefix) for key in part.state_dict()):  # the part's own names
        return weights
    if all(key.startswith(prefix) for key in weights):
        return {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def _mismatches(
    name: str, found: dict[str, Tensor] | None, expected: dict[str, Tensor] | None
) -> list[str]:
    if found is None:
        return [f"part {name!r} is missing"] if expected else []
    if expected is None:
        return [f"part {name!r} is unexpected"]
    lists = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "of another shape": [
            f"{key} {tuple(found[key].shape)}, expected {tuple(value.shape)}"
            for key, value in expected.items()
            if key in found and found[key].shape != value.shape
        ],
    }
    return [
        f"in {name!r} {len(keys)} {what}: {listed(keys, SHOWN)}"
        for what, keys in lists.items()
        if keys
    ]
