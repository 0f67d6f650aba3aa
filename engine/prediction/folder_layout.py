"""The folder that predictions go to: files of each image, a table, and the settings behind it.

    masks/<name>.png            0 or 255
    probabilities/<name>.png    probability x 65535, 16 bits
    uncertainties/<name>.png    standard deviation x 65535, 16 bits; with test-time augmentation
    overlays/<name>.jpg
    predictions.csv             one row per image
    settings.json

While a run goes on, the rows are in predictions.partial.csv. A relative path in `file` starts at the
`directory` that settings.json names.
"""

from __future__ import annotations

from pathlib import Path

OUTPUT_FOLDERS = {
    "mask": "masks",
    "probability": "probabilities",
    "uncertainty": "uncertainties",
    "overlay": "overlays",
}
TABLE, PARTIAL_TABLE = "predictions.csv", "predictions.partial.csv"
SETTINGS = "settings.json"
DIRECTORY = "directory"  # where the run was started; beside the settings, and none of them
COLUMNS = (
    "name",
    "file",
    "width",
    "height",
    "area_pixels",
    "area_percent",
    "mean_uncertainty",
    "status",
    "message",
)

PredictionRow = dict[str, str]


def is_used(folder: Path) -> bool:
    """Whether a run has written its predictions into the folder, finished or not."""
    try:
        return (folder / TABLE).exists() or (folder / PARTIAL_TABLE).exists()
    except OSError:  # such as a folder above that may not be entered
        return False
