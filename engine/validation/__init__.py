"""How a trained network is scored on a data set."""
