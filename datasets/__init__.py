"""Data: catalogue, preparation, split files, loading and augmentation."""
