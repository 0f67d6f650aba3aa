"""What a prepared data set is checked for: damage, duplicates, and test cases that leak into training."""
