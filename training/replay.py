"""Calls a function of tensors on a GPU as one CUDA graph: one launch in place of hundreds.

A launch takes the host some 5 us, and a step of a small network takes the GPU less time than its hundreds of launches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from training.devices import warn_of_lacking


class Replay:
    """Calls functions whose work is the same whenever the shapes of their tensors and their settings are the same.

    The first call of a kind runs as usual: it loads kernels, which a capture cannot. The second is captured, and from
    then on the graph is replayed, with new values of the tensors. A function must not wait for the device. Its further
    memory must stay in place, and it must leave nothing behind in new tensors. Where no graph can be captured, a line
    says so, and all calls of the process run as usual: torch 2.11 keeps the memory of a capture that has failed, and
    may refuse the next one.
    """

    is_possible = True

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)  # for cuBLAS's workspace, the same in first calls and in captures
        self.pool = torch.cuda.graph_pool_handle()  # the graphs never run at the same time: they may share their memory
        self.seen: set[tuple] = set()  # kinds of calls
        # The graph of each kind, and the tensors that it reads.
        self.graphs: dict[tuple, tuple[torch.cuda.CUDAGraph, list[torch.Tensor]]] = {}

    def __call__(self, function: Callable[..., None], *tensors: torch.Tensor, **settings: object) -> None:
        """Call `function(*tensors, **settings)`. The settings must be hashable."""
        kind = (*(tensor.shape for tensor in tensors), *settings.items())
        if kind in self.seen and kind not in self.graphs and self.is_possible:
            self._capture(kind, function, *tensors, **settings)
        if kind not in self.graphs:
            self.seen.add(kind)
            self._call(function, *tensors, **settings)
            return
        graph, inputs = self.graphs[kind]
        for there, here in zip(inputs, tensors, strict=True):
            there.copy_(here)
        graph.replay()

    def _call(self, function: Callable[..., None], *tensors: torch.Tensor, **settings: object) -> None:
        outside = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(outside)
        with torch.cuda.stream(self.stream):
            function(*tensors, **settings)
        outside.wait_stream(self.stream)

    def _capture(self, kind: tuple, function: Callable[..., None], *tensors: torch.Tensor, **settings: object) -> None:
        """Make the graph of a call, if one can be made. Nothing is computed."""
        inputs, graph = [tensor.clone() for tensor in tensors], torch.cuda.CUDAGraph()
        try:
            # After an error, the outer `with` returns to the stream outside.
            with torch.cuda.stream(self.stream), torch.cuda.graph(graph, self.pool, self.stream):
                function(*inputs, **settings)
        except RuntimeError as error:
            Replay.is_possible = False
            # What the function raised: the end of the capture then raises, too, and says only that it has failed.
            warn_of_lacking("CUDA graph", error.__context__ or error)
        else:
            self.graphs[kind] = graph, inputs
