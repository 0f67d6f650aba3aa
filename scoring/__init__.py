"""How good segmentations are: metrics, intervals, comparisons, reports."""
