"""Validate a trained model on the test split: masks, probabilities, scores.

    python valid.py --config configs/busi_valid.yaml
    python valid.py --config configs/busi_valid.yaml model_weight=path/to/best_model.pth
    python valid.py --config configs/busi_valid.yaml --datasets bus busi

Writes beside the checkpoint: predicted_masks_<dataset>/ and valid_results_<dataset>/.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.entry import exit_from

if TYPE_CHECKING:
    from accelerate import Accelerator

    from datasets.cases import DataSet
    from models.base import SegmentationModel
    from utils.config import Config

log = logging.getLogger("wavegms")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see docs/config.md")
    parser.add_argument(
        "--datasets", nargs="+", metavar="NAME", help="prepared data sets; default: the config's"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="change keys of the config"
    )
    arguments = parser.parse_args(argv)
    # `--datasets a b key=value`: the values were taken as names
    names = arguments.datasets or []
    arguments.overrides += [name for name in names if "=" in name]
    arguments.datasets = [name for name in names if "=" not in name]
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)

    from utils.config import load_config

    config = load_config(arguments.config, arguments.overrides)

    from engine.device import make_accelerator, use_gpus

    use_gpus(config.GPUs[:1])
    accelerator = make_accelerator(config.precision, 1, config.deterministic)

    from datasets.cases import open_data_set
    from engine.build import find_checkpoint, system_from, trained_otherwise, training_config
    from utils.checkpoints import load_weights
    from utils.runs import log_to, writing_to

    log_to()
    checkpoint = find_checkpoint(config)
    system = system_from(config)
    load_weights(checkpoint, system)
    log.info("weights: %s", checkpoint)
    others = trained_otherwise(config, training_config(checkpoint))
    if others:
        keys = " ".join(
            f"{key}={'null' if value is None else value}" for key, value in others.items()
        )
        log.warning("these weights were trained with %s: to validate as trained, add that", keys)
    paths = [Path(f"datasets/{name}/{name}_train_test_names.json") for name in arguments.datasets]
    data_sets = [open_data_set(path) for path in paths or [config.pickle_file_path]]
    summaries = {}
    for data_set in data_sets:
        masks = config.save_seg_img_path or checkpoint.parent / f"predicted_masks_{data_set.name}"
        if config.save_seg_img_path and len(data_sets) > 1:  # whose cases may share names
            masks = masks / data_set.name
        with writing_to(checkpoint.parent):
            summaries[data_set.name] = validate(
                config, data_set, system, checkpoint, masks, accelerator
            )
    if len(summaries) > 1:
        from utils.cross_domain import write_matrix

        folder = checkpoint.parent / "cross_domain"
        cells = {(s["provenance"]["trained_on"] or "?", name): s for name, s in summaries.items()}
        write_matrix(folder, cells)
        log.info("all data sets side by side: %s", folder)


def validate(
    config: Config,
    data_set: DataSet,
    system: SegmentationModel,
    checkpoint: Path,
    masks: Path,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Predict and score the test split of one data set; masks go into `masks`, the rest beside the
    checkpoint.

    Returns the summary that is also written as summary.json.
    """
    from engine.build import provenance
    from engine.evaluation import format_summary, predict_cases, report_cases, saving
    from engine.examples import draw_examples, names_by_quantile, write_overlays
    from utils.metrics import score_cases
    from utils.report import write_report
    from utils.results import write_results

    leaked = leaked_cases(data_set, checkpoint) if config.drop_leaked else set()
    results = checkpoint.parent / f"valid_results_{data_set.name}"
    predictions = predict_cases(
        system,
        data_set.test,
        image_size=config.image_size,
        evaluation_size=config.evaluation_size,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        accelerator=accelerator,
        tta=config.tta,
    )
    rows = score_cases(
        saving(predictions, masks, config.threshold),
        hd95_empty=config.hd95_empty,
        workers=config.num_workers,
        total=len(data_set.test),
    )
    summary = write_results(
        results,
        rows,
        provenance=provenance(config, data_set, checkpoint),
        leaked=leaked,
        hd95_empty=config.hd95_empty,
    )
    write_report(
        results / "report.html",
        report_cases(data_set.test, masks),
        rows=rows,
        summary=summary,
        title=f"{config.model} ({config.vae_model}) on {data_set.name}",
        threshold=config.threshold,
    )
    write_overlays(results / "overlays", report_cases(data_set.test, masks), config.threshold)
    shown = set(names_by_quantile(rows).values())
    examples = report_cases([case for case in data_set.test if case.name in shown], masks)
    draw_examples(
        results / "examples.png", rows, {case.name: case for case in examples}, config.threshold
    )
    log.info(format_summary(data_set.name, summary))
    log.info("masks and probabilities: %s", masks)
    log.info("scores, examples.png and report.html: %s", results)
    return summary


def leaked_cases(data_set: DataSet, checkpoint: Path) -> set[str]:
    """Test cases that the weights were trained on, or on a twin of; needs a checked data set.

    What counts is the split that the checkpoint was trained on; where that is unknown, the data set's.
    """
    from datasets.integrity import leaked_names
    from datasets.splits import Split
    from engine.build import cases_trained_on

    trained_on = cases_trained_on(checkpoint, data_set)
    test = tuple(case.name for case in data_set.test)
    if not trained_on:
        log.info("no case of %s was in training, so none leaked", data_set.name)
        return set()
    return leaked_names(data_set.folder, Split(trained_on, test)) | (set(trained_on) & set(test))


if __name__ == "__main__":
    exit_from(main)
