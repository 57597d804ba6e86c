"""From a trained network to integers: sensitivities, compensated rounding, codebooks, and what is chosen among them."""
