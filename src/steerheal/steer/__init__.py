"""From a persona to training data: vector, dose, filter."""
