"""From a volume to a trained network: samples, loss and gradient, optimisers, the fit and its recovery, long runs."""
