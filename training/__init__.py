"""Trains a network on a volume: samples, loss and gradient, optimisers, the fit and its recovery, long runs."""
