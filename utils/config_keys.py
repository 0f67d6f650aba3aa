"""What sets of keys of the config mean: who adds a key to `utils.config.Config` decides here what it is.

Those that one module alone uses are in that module, such as `experiments.sweeps.settings.NOT_SWEPT`.
"""

from __future__ import annotations

WAVE_GMS_KEYS = frozenset({
    "align_loss", "ch", "ch_mult", "checkpoint_decoder", "guidance_method", "head_weights", "latent_loss",
    "vae_model", "vae_weights", "w_dice", "w_rec", "w_tversky",
})  # fmt: skip
"""Keys that only `model: wave-gms` uses, that is Wave-GMS and GMS. Baselines and networks of one's own are
built and trained without them (`models.build.build_system`)."""

IGNORED_KEYS = frozenset({"in_channel", "num_res_blocks", "out_channels", "phase", "w_kl"})
"""Keys that are accepted from published files and change nothing, whatever the model."""

MACHINE_SETTINGS = IGNORED_KEYS | {
    "GPUs", "cache_mb", "channels_last", "checkpoint_decoder", "compile", "cuda_graphs", "deterministic",
    "drop_leaked", "log_every", "num_workers", "pickle_file_path", "resume", "save_minutes", "snapshot_path",
}  # fmt: skip
"""Keys that affect where and how fast a run is computed, or what else is reported, but not its scores: runs
that differ only in these may be compared. Of `pickle_file_path` the data set's name counts. Not in here:
`precision`, and every key that affects training, the choice of the checkpoint, or scoring."""

ONLY_SCORED_OR_KEPT = frozenset({
    "evaluation_size", "hd95_empty", "model_weight", "save_freq", "save_seg_img_path", "tta",
})  # fmt: skip
"""Keys that affect only how a trained run is scored, and what is kept of it."""

IDLE = MACHINE_SETTINGS | ONLY_SCORED_OR_KEPT
"""Keys that change neither what a run learns nor which of its checkpoints is best. Of `GPUs`, however, the
number counts: each has batches of its own."""

MAY_TRAIN_OTHERWISE = frozenset({"precision", "skip_nonfinite", "vae_weights", "validate_every"})
"""Keys that a run may change when it is resumed, but of which it may still learn or keep something else."""

CHANGEABLE_ON_RESUME = IDLE | MAY_TRAIN_OTHERWISE
"""Keys that may change when a run is resumed. The split file and the frozen weights are compared by their
hashes, the precision by what it means on the device."""

NOT_INHERITED = {"model_weight": None, "save_seg_img_path": None}
"""Keys of the config of a sweep or study that no trial gets: it scores its own weights, and its masks go
into its folder."""

WEIGHT_KEYS = ("model", "vae_model", "guidance_method", "ch", "ch_mult")
"""Keys of the config by which a network has other weights."""
