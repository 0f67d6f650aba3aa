"""One typed schema for every run.

The keys are flat. Those of the published GMS and Wave-GMS files are accepted as they are; a published
Wave-GMS file runs unchanged. `utils.yaml_files` reads them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from utils.config_keys import IGNORED_KEYS, WAVE_GMS_KEYS
from utils.config_problems import explain
from utils.data_set_names import data_set_name
from utils.errors import UserError
from utils.own_functions import OWN_FUNCTION
from utils.yaml_files import parse_overrides, read_mapping, shown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

log = logging.getLogger("wavegms")

Options = TypeVar("Options", bound="DataclassInstance")

AUGMENT_FORM = re.compile(rf"strong|{OWN_FUNCTION}")
MODEL_FORM = re.compile(rf"wave-gms|smp/.*|{OWN_FUNCTION}")


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "Input should be a number")
    return value


Number = Annotated[int, BeforeValidator(_no_bool)]
PositiveInt = Annotated[Number, Field(ge=1, lt=1 << 31)]
Count = Annotated[Number, Field(ge=0, lt=1 << 31)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


def _at_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:  # ~name of nobody
        raise ValueError(f"{path}: {error}") from error


FilePath = Annotated[Path, AfterValidator(_at_home)]


class Config(BaseModel):
    """All settings of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    # Data
    pickle_file_path: FilePath = Field(
        description="Split file, `<name>_train_test_names.json` or `.pkl`, beside images/ and masks/. If it lies "
        "outside `datasets/`, as in published configs (`./Dataset/BUSI/...`), and there is none, the prepared data set of "
        "that name is taken"
    )
    image_size: PositiveInt = Field(
        224, description="Side of the square input in pixels, a multiple of 8"
    )
    augment: Annotated[bool | str, Field(union_mode="left_to_right")] = Field(
        True,
        description="Augmentation of the training images: `true`, as published; `false`, none; `strong`, more of it; or a "
        "function of your own that returns one, `package.module:function` as for `model`, see models.md",
    )
    keep_upright: bool = Field(
        False,
        description="Images have a top, as in ultrasound: of flips and quarter turns, take only the mirror image left to "
        "right, in training (except in an augmentation of your own) and in test-time augmentation; `false` takes "
        "all, as published",
    )
    val_fraction: Fraction = Field(
        0.1,
        description="Fraction of train held out to choose the checkpoint; fixed by case name and seed; not used where the "
        "split file names such cases (`val`)",
    )
    folds: Count = Field(
        0,
        description="Number of folds that train is cut into; one is held out in place of val_fraction; 0 is off",
    )
    fold: Count = Field(0, description="Which of the folds is held out, from 0")
    num_workers: Count = Field(2, description="Loader processes; in valid.py also those that score")
    cache_mb: Count = Field(
        4096,
        description="Memory for decoded images in MiB, of each process, in valid.py too; cases beyond it are decoded on every access",
    )
    drop_leaked: bool | None = Field(
        None,
        description="Also score without the test cases that were in the training data or were found to have a "
        "near-duplicate there; `true` needs the data set to have been checked (`--check`), `null` looks for near-duplicates where "
        "it was, `false` leaves none out",
    )

    # Model
    model: str = Field(
        "wave-gms",
        description="`wave-gms`, a baseline such as `smp/Unet?encoder=resnet18`, or a function of your own that "
        "builds a network, `package.module:function` or with options `package.module:function?width=32&depth=3`, see "
        "models.md; it is imported and called",
    )
    vae_model: Literal["litevae", "litevae-b", "litevae-m", "litevae-l", "tiny_vae", "sd_vae"] = (
        Field(
            "litevae",
            description="Source of the image latent: a trained Haar encoder (`litevae`, `-b`, `-m`, `-l`) or the "
            "frozen encoder of a `tiny_vae` or `sd_vae`",
        )
    )
    guidance_method: Literal["wavelet"] | None = Field(
        None,
        description="`wavelet` guides the latent mapping model by Haar details (tiny_vae only)",
    )
    vae_weights: str = Field(
        "madebyollin/taesd",
        description="Frozen VAE whose decoder produces the mask: a diffusers folder or a hub id",
    )
    ch: PositiveInt = Field(
        32,
        multiple_of=16,
        description="Base channels of the latent mapping model, a multiple of 16",
    )
    ch_mult: tuple[PositiveInt, ...] = Field(
        (1, 2, 4, 4),
        min_length=4,
        max_length=4,
        description="Channel multipliers of its four stages",
    )
    init_weights: FilePath | None = Field(
        None,
        description="Checkpoint of the same architecture whose weights training starts from; null starts from "
        "random ones",
    )

    teachers: tuple[FilePath, ...] = Field(
        (),
        description="Checkpoints of trained models, each beside the config.yaml of its run; their mean prediction is "
        "mixed into the masks that are learned, see models.md",
    )
    teacher_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="What part of these masks is the teachers'"
    )

    # Losses
    w_rec: Weight = Field(1.0, description="Weight of the latent loss")
    w_dice: Weight = Field(1.0, description="Weight of the Dice loss")
    w_tversky: Weight = Field(
        0.0, description="Weight of the focal Tversky loss beside the Dice loss; 0 leaves it out"
    )
    latent_loss: Literal["mse", "l1"] = Field(
        "mse", description="Distance of the latent loss: mean squared or mean absolute error"
    )
    head_weights: tuple[Weight, Weight, Weight] = Field(
        (1.0, 1.0, 1.0),
        description="Weights of the heads `level2`, `level1` and `out` in these losses; one of weight 0 is not decoded",
    )
    align_loss: Weight = Field(
        1.0,
        description="Weight of the alignment loss; true is 1, false is 0 (litevae encoders only)",
    )

    # Optimisation
    epochs: PositiveInt = Field(1000, description="Passes over the training cases")
    batch_size: PositiveInt = Field(12, description="Images per batch and per process (GPU)")
    accumulate: PositiveInt = Field(
        1, description="Batches whose gradients make one optimiser step"
    )
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description="`adamw`, or `muon`: momentum that is orthogonalised, for convolutions and linear layers of at "
        "least 8 channels in and out, and AdamW for the rest, with the same `lr` and `weight_decay`",
    )
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        2e-3, description="Peak learning rate"
    )
    weight_decay: Weight = Field(0.01, description="Decoupled weight decay, as AdamW's")
    warmup_epochs: Weight = Field(5, description="Epochs of linear warm-up before the cosine to 0")
    clip_norm: Weight = Field(0.0, description="Largest gradient norm; 0 does not clip")
    ema_decay: Fraction = Field(
        0.0,
        description="Decay of the moving average of the weights, which is then evaluated and kept; 0 is off. Not for "
        "networks with batch normalisation",
    )
    seed: Annotated[Number, Field(ge=0, lt=2**63)] = Field(
        2333, description="Seed for all random numbers"
    )
    skip_nonfinite: Count = Field(
        0,
        description="How many batches may have a NaN or infinite loss before the run stops; the optimiser steps that "
        "they belong to are discarded",
    )

    # Hardware
    GPUs: tuple[Count, ...] = Field(
        (0,),
        description="GPUs to use, one process each (as many when resumed), [] for the CPU; they count those that "
        "CUDA_VISIBLE_DEVICES shows, where that is set. Ignored on a machine without GPUs",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="auto: bf16 on GPUs that have it, fp16 on others, fp32 on the CPU, where bf16 is faster on a "
        "processor with units for it (docs/performance.md). When resumed it must mean the same",
    )
    channels_last: bool = Field(
        True,
        description="Channels-last memory layout of weights and activations; on the CPU the encoder stays contiguous",
    )
    cuda_graphs: bool = Field(
        True,
        description="On one GPU, launch all kernels of a training step or a prediction at once, as CUDA graphs; not "
        "for baselines, for networks of your own only if they are `capturable` (docs/models.md), and with "
        "`accumulate` above 1 only predictions, not training steps",
    )
    compile: bool = Field(
        False,
        description="On a GPU, let torch.compile fuse the training step: the first one then takes minutes, the others "
        "are faster (docs/performance.md). Needs a C compiler",
    )
    checkpoint_decoder: bool = Field(
        False,
        description="Recompute the decoder in the backward pass instead of keeping its activations",
    )
    deterministic: bool = Field(False, description="Deterministic kernels on the GPU, slower")

    # Run folder, validation and scoring
    snapshot_path: FilePath = Field(
        Path("ckpt/wave_gms"), description="Folder of the experiment; runs are `epochs_<N>` in it"
    )
    select_on: Literal["val", "test", "last"] = Field(
        "val",
        description="Cases that choose the checkpoint: `val`, held out of train, or `test`, as in the published code, "
        "after training on all of train; "
        "with `last` none do, and the last epoch is kept, after training on all of train if `val_fraction: 0` (without "
        "`folds`, and cases that the split names `val` stay out). "
        "Every output states it",
    )
    validate_every: PositiveInt = Field(1, description="Epochs between validations")
    save_freq: PositiveInt | None = Field(
        None, description="Also keep the weights of every N-th epoch"
    )
    save_minutes: Annotated[float, Field(gt=0)] = Field(
        10.0, description="Minutes between saves within a long epoch"
    )
    log_every: PositiveInt = Field(
        10,
        description="Batches between two readings of the losses on a GPU; only then does the progress bar move, and "
        "can the run be saved or stopped. On the CPU, or with `skip_nonfinite`, every batch",
    )
    resume: Literal["auto", "never"] = Field(
        "auto",
        description="`auto` resumes a run in the same folder where it stopped; `never` starts again, and deletes the "
        "weights and scores of the run there each time that it is given",
    )
    model_weight: FilePath | None = Field(
        None, description="Checkpoint to validate; null is the best of this run"
    )
    save_seg_img_path: FilePath | None = Field(
        None,
        description="Folder of predicted masks; null is one beside the checkpoint. In a folder that is named here, "
        "valid.py deletes no masks of other cases. It puts those of a checkpoint other than best_model.pth and of a "
        "`--name` into subfolders of these names, those of held-out cases into `held_out_masks/`, "
        "and with several `--datasets` those of each into one of its name",
    )
    threshold: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="Probability from which a pixel is foreground"
    )
    tta: bool = Field(
        False,
        description="Validate on the mean over eight orientations of each image, two with `keep_upright`",
    )
    evaluation_size: PositiveInt | Literal["native"] | None = Field(
        None,
        description="Side in pixels at which masks are scored, or `native` for each mask's own; null is image_size",
    )
    hd95_empty: Literal["diagonal", "zero"] = Field(
        "diagonal", description="HD95 of a missed case: the image diagonal, or 0 as published"
    )

    # Accepted from published files
    phase: Literal["train", "valid", "val", "test"] = Field(
        "train",
        description="`train`, `valid`, `val` or `test`; ignored: the script that you call decides what is done",
    )
    in_channel: Literal[4] = Field(4, description="Latent channels of the image; always 4")
    out_channels: Literal[4] = Field(4, description="Latent channels of the mask; always 4")
    num_res_blocks: PositiveInt = Field(2, description="Ignored, as in the published code")
    w_kl: Weight = Field(0.0, description="Ignored")

    @model_validator(mode="before")
    @classmethod
    def _from_older_files(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Older Wave-GMS files call the encoder by its size, S, and name a Tiny-VAE that is always taken."""
        kept = {
            key: value for key, value in values.items() if (key, value) != ("tiny_mode", "tiny")
        }
        if kept.get("vae_model") == "litevae-s":
            kept["vae_model"] = "litevae"
        return kept

    @field_validator("model")
    @classmethod
    def _model_form(cls, value: str) -> str:
        if not MODEL_FORM.fullmatch(value):
            raise ValueError(
                f"model is {shown(value)}, expected wave-gms, a baseline such as "
                "smp/Unet?encoder=resnet18, or a function of your own as package.module:function or "
                "package.module:function?width=32&depth=3"
            )
        return value

    @field_validator("augment")
    @classmethod
    def _augment_form(cls, value: bool | str) -> bool | str:
        if isinstance(value, str) and not AUGMENT_FORM.fullmatch(value):
            raise ValueError(
                f"augment is {shown(value)}, expected true (as published), false, strong, or a function of your "
                "own as package.module:function or package.module:function?option=value"
            )
        return value

    @field_validator(
        "guidance_method", "init_weights", "model_weight", "save_seg_img_path", mode="before"
    )
    @classmethod
    def _none_by_name(cls, value: object) -> object:
        return None if value in ("", "none", "None", False) else value

    @field_validator("teachers", mode="before")
    @classmethod
    def _teachers_from_text(cls, value: object) -> object:
        if value in (None, "", "none", "None", False):
            return ()
        if isinstance(value, str):
            return value.split(",")
        return (value,) if isinstance(value, Path) else value

    @field_validator("GPUs", mode="before")
    @classmethod
    def _gpus_from_text(cls, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            return (value,)
        return value.split(",") if isinstance(value, str) else value

    @field_validator("GPUs")
    @classmethod
    def _gpus_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"GPUs is {list(value)}, but each GPU can be named once")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Config:
        if self.image_size % 8:
            below = self.image_size // 8 * 8
            nearest = f"{below} or {below + 8}" if below else "8"
            raise ValueError(
                f"image_size is {self.image_size}, but 8 must divide it: use {nearest}"
            )
        if self.guidance_method and self.vae_model != "tiny_vae":
            raise ValueError(
                f"guidance_method: wavelet needs vae_model: tiny_vae, got vae_model: {self.vae_model}"
            )
        if not self.head_weights[-1]:
            raise ValueError(
                f"head_weights is {list(self.head_weights)}, but its last, that of the head that "
                "predicts, must be above 0"
            )
        losses = [self.w_rec, self.w_dice, self.w_tversky]
        if self.vae_model.startswith("litevae"):
            losses.append(self.align_loss)
        if self.is_wave_gms and not any(losses):
            raise ValueError(
                "w_rec, w_dice, w_tversky and align_loss (with a litevae) are 0, so that nothing would be learned: "
                "set one of them above 0"
            )
        if self.run_folder.resolve() in [path.parent.resolve() for path in self.builds_on]:
            raise ValueError(
                f"init_weights, or one of the teachers, lies in {self.run_folder}, where this run writes its own "
                "weights: set another snapshot_path, or keep the weights elsewhere"
            )
        if self.folds == 1 or (self.fold and self.fold >= self.folds):
            raise ValueError(
                f"fold is {self.fold} of folds: {self.folds}, expected at least 2 folds and a fold "
                "from 0 to folds - 1; folds: 0 and fold: 0 for none"
            )
        if self.folds and self.select_on == "test":
            raise ValueError("folds choose the checkpoint on the fold held out: set select_on: val")
        return self

    @property
    def builds_on(self) -> tuple[Path, ...]:
        """Checkpoints that the training starts from or learns from."""
        return (*([self.init_weights] if self.init_weights else []), *self.teachers)

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return data_set_name(self.pickle_file_path)

    @property
    def scored_on(self) -> Literal["val", "test"]:
        """The cases that epochs are scored on in training, if there are any."""
        return "test" if self.select_on == "test" else "val"

    @property
    def keeps_last(self) -> bool:
        """Whether the last epoch is kept, not the one that scores best."""
        return self.select_on == "last"

    @property
    def is_wave_gms(self) -> bool:
        """False for a baseline or a network of one's own, which do not use WAVE_GMS_KEYS."""
        return self.model == "wave-gms"

    def unused(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` that this run's model does not use, in alphabetical order."""
        of_others = frozenset() if self.is_wave_gms else WAVE_GMS_KEYS
        return sorted((IGNORED_KEYS | of_others).intersection(keys))

    @property
    def changed_and_unused(self) -> list[str]:
        """Keys that differ from their default, though this run's model does not use them.

        `vae_weights` is left out: configs set it once for all models. So are IGNORED_KEYS, which published
        files have.
        """
        fields = type(self).model_fields
        return self.unused(
            key
            for key in fields.keys() - IGNORED_KEYS - {"vae_weights"}
            if getattr(self, key) != fields[key].default
        )

    @property
    def run_folder(self) -> Path:
        """Where the run writes: `<snapshot_path>/epochs_<epochs>`."""
        return self.snapshot_path / f"epochs_{self.epochs}"


def make_config(values: dict[str, Any], where: str = "config") -> Config:
    """Validate `values`; raises UserError that lists every problem."""
    unset = {key for key, value in values.items() if value is None and key in Config.model_fields}
    try:
        return Config(**{key: value for key, value in values.items() if key not in unset})
    except ValidationError as error:
        raise UserError(explain(error, Config.model_fields, where)) from error


def check_used(config: Config, values: Mapping[str, Any], where: str) -> None:
    """UserError where one of `values`, set for this run alone, is of a key that its model does not use.

    Runs that differ in it would be the same. None, which means the default, is let through.
    """
    unused = config.unused(key for key, value in values.items() if value is not None)
    if unused:
        remedy = (
            "set it only where the model is wave-gms"
            if WAVE_GMS_KEYS.issuperset(unused)
            else "leave it out"
        )
        raise UserError(
            f"{where}: model {config.model} does not use {', '.join(unused)}, so that runs which differ only in "
            f"this would be the same: {remedy}"
        )


def check_not_empty(overrides: Sequence[str]) -> None:
    """UserError where one has no value, as from a shell's unset variable: it would bring back the default of
    the key, unless that is null anyway.
    """
    for override in overrides:
        key, _, text = override.partition("=")
        field = Config.model_fields.get(key.strip())
        if field is not None and field.default is not None and not text.strip():
            raise UserError(
                f"the override {override!r} has no value: give it one, or leave it out. {key.strip()}=null takes the "
                "default of docs/config.md"
            )


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config with its bases, apply `key=value` overrides and validate the result.

    Raises UserError for an unreadable file, unknown keys (with a suggestion), wrong types, values
    out of range and settings that contradict each other.
    """
    path = Path(path)
    check_not_empty(overrides)
    values = read_mapping(path) | parse_overrides(overrides)
    if "num_res_blocks" in values and not {"model", "vae_model"} & values.keys():
        log.warning(
            "%s names no network, as the files of GMS do, and is taken for one of Wave-GMS; for GMS set "
            "vae_model=sd_vae and, as vae_weights, the VAE of Stable Diffusion",
            path,
        )
    return make_config(values, " ".join([str(path), *overrides]))


def part_of(config: Config, options: type[Options]) -> Options:
    """A dataclass of options, its fields those of the same names in the config."""
    return options(**{field.name: getattr(config, field.name) for field in fields(options)})


def dump_config(config: Config) -> str:
    """The resolved config as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
