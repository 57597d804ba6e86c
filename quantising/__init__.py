"""Quantises a trained network: sensitivities, error compensation (GPTQ), codebooks, and the choice among them."""
