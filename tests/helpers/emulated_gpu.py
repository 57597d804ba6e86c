"""A CUDA device that the CPU plays, so that the path of a GPU runs in tests where there is no GPU.

A tensor of this device wraps one of the CPU, and says that it is on cuda:0. What a GPU refuses is an error here:
operations on tensors of both devices, NumPy's arrays of a tensor there, random numbers of the other device's generator.
A graph holds the operations of its capture, and repeats them on the same memory. While it captures, nothing may wait
for the device, nothing may pass between host and device, and nothing is computed in the end.

It does not know what a GPU's own kernels do: neither how fast nor how exact they are, nor those of Triton.
"""

from __future__ import annotations

import contextlib
import copy
import types
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
VERSIONS = ("2.11.", "2.13.")  # of torch, whose inner parts this module uses
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"}  # the host waits for these
CROSSING = {"_to_copy", "copy_"}  # operations that may pass between the devices
TENSOR_DATA = torch.Tensor.data


class There(torch.Tensor):
    """A tensor of the emulated device. on_cpu: the tensor of the CPU that holds its values."""

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    @staticmethod
    def __new__(cls, on_cpu: torch.Tensor) -> There:
        # For torch it is on "meta", the device of tensors without values. It would look for drivers of CUDA.
        like = {"strides": on_cpu.stride(), "storage_offset": on_cpu.storage_offset(), "dtype": on_cpu.dtype}
        like |= {"requires_grad": on_cpu.requires_grad}
        tensor = cls._make_wrapper_subclass(cls, on_cpu.size(), **like, device="meta")
        tensor.on_cpu = on_cpu
        return tensor

    def __deepcopy__(self, memo: dict) -> There:
        if id(self) not in memo:
            found = There(self.on_cpu.detach().clone())
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(found, self.requires_grad) if is_parameter else found
        return memo[id(self)]

    def __reduce_ex__(self, protocol: int) -> tuple:
        return self.on_cpu.detach().__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _computed(operation, args, kwargs or {})


# --- operations ---------------------------------------------------------------------------------------

_state = types.SimpleNamespace(graph=None)  # the graph that captures


def _is_there(device: torch.device | str | None) -> bool:
    return device is not None and torch.device(device).type in ("cuda", "meta")


def _on_cpu(tree: object) -> object:
    return tree_map(lambda leaf: leaf.on_cpu if isinstance(leaf, There) else leaf, tree)


def _tensors(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _place(tensor: torch.Tensor) -> int:
    """What two tensors of the same memory have in common."""
    return tensor.untyped_storage().data_ptr()


def _written(operation: Callable, args: tuple, kwargs: dict) -> list[torch.Tensor]:
    """The arguments that an operation changes."""
    given = dict(zip((argument.name for argument in operation._schema.arguments), args, strict=False)) | kwargs
    changed = (a.name for a in operation._schema.arguments if a.alias_info is not None and a.alias_info.is_write)
    return _tensors([given.get(name) for name in changed])


def _waits(name: str, args: tuple, kwargs: dict) -> bool:
    """Whether an operation on tensors of the device makes the host wait, as its result decides a shape or a number."""
    is_mask = name.startswith("index") and any(t.dtype == torch.bool for t in _tensors(args[1:2]))
    return name in WAITING or is_mask or (name == "repeat_interleave" and kwargs.get("output_size") is None)


def _check(name: str, args: tuple, kwargs: dict, is_there: bool) -> None:
    """Raise RuntimeError if a GPU, or a capture, would not do this operation."""
    given = _tensors((args, kwargs))
    here = [tensor for tensor in given if not isinstance(tensor, There)]
    is_mixed = is_there and bool(here) and len(here) < len(given)
    if is_mixed and name not in CROSSING and any(tensor.dim() for tensor in here):
        raise RuntimeError(f"{name}: expected tensors of one device, found some on the CPU and some on {DEVICE}")
    is_crossing = name in CROSSING and (bool(here) or not is_there)
    if _state.graph is not None and (is_mixed or is_crossing or _waits(name, args, kwargs)):
        raise RuntimeError(f"{name}: operation not permitted when stream is capturing")


def _carried_out(operation: Callable, name: str, args: tuple, kwargs: dict) -> object:
    """The result of an operation on tensors of the CPU."""
    if name in ("mm", "bmm") and operation._overloadname == "dtype":  # float16 with sums in float32
        return operation.overloadpacket(args[0].float(), args[1].float())
    return operation(*args, **kwargs)


def _computed(operation: Callable, args: tuple, kwargs: dict) -> object:
    """The result of an operation with a tensor or a result on the device."""
    name, device = operation._schema.name.partition("::")[2], kwargs.get("device")
    is_there = any(isinstance(t, There) for t in _tensors((args, kwargs))) if device is None else _is_there(device)
    _check(name, args, kwargs, is_there)
    on_cpu = kwargs | ({"device": "cpu"} if device else {})
    for option in ("pin_memory", "non_blocking"):
        on_cpu.pop(option, None)
    work = operation, name, *_on_cpu((args, on_cpu))
    found = _carried_out(*work) if _state.graph is None else _state.graph.captured(*work)
    if not is_there:
        return found
    changed = {id(_on_cpu(tensor)): tensor for tensor in _written(operation, args, kwargs)}

    def there(leaf: object) -> object:
        return changed.get(id(leaf), There(leaf)) if isinstance(leaf, torch.Tensor) else leaf

    return tree_map(there, found)


class _Operations(TorchDispatchMode):
    """Takes the operations that make tensors on the device; those with tensors there come to them by themselves."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        is_ours = _is_there(kwargs.get("device")) or any(isinstance(t, There) for t in _tensors((args, kwargs)))
        return _computed(operation, args, kwargs) if is_ours else operation(*args, **kwargs)


# --- functions that do not come to operations without a driver ------------------------------------------


class _Moved(torch.autograd.Function):
    """A tensor, copied to the other device."""

    @staticmethod
    def forward(context, tensor: torch.Tensor) -> torch.Tensor:
        if _state.graph is not None:
            raise RuntimeError("copy: operation not permitted when stream is capturing")
        if isinstance(tensor, There):
            return tensor.on_cpu.detach().clone()
        return There(tensor.detach().clone())

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> torch.Tensor:
        return _Moved.apply(gradient)


def _to(tensor: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
    """`Tensor.to`."""
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    for value in args:
        if isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, torch.Tensor):
            device, dtype = value.device, value.dtype
        elif isinstance(value, (str, torch.device)):
            device = value
    if device is not None and _is_there(device) != isinstance(tensor, There):
        tensor = _Moved.apply(tensor)
    return tensor if dtype in (None, tensor.dtype) else tensor.type(dtype)


def _check_generator(generator: torch.Generator, is_there: bool) -> None:
    if getattr(generator, "is_there", False) != is_there:
        raise RuntimeError("expected a generator of the same device as that of the numbers")
    if _state.graph is not None:
        raise RuntimeError("random numbers: operation not permitted when stream is capturing")


class _Functions(TorchFunctionMode):
    """Takes the functions that look for a driver, or read a tensor's memory."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, first = kwargs or {}, args[0] if args else None
        is_there, of = isinstance(first, There), getattr(function, "__self__", None)
        if (generator := kwargs.get("generator")) is not None:
            _check_generator(generator, is_there or _is_there(kwargs.get("device")))
        if function in (torch.tensor, torch.as_tensor) and _is_there(kwargs.get("device")):
            return _to(function(_on_cpu(first), dtype=kwargs.get("dtype")), DEVICE)
        if function is torch.Tensor.to:
            return _to(*args, **kwargs)
        if not is_there:
            return function(*args, **kwargs)
        if of is TENSOR_DATA and function.__name__ == "__set__":
            first.on_cpu = args[1].on_cpu
            return function(*args)
        if of is TENSOR_DATA:
            return first.detach()
        if function is torch.Tensor.new_tensor:
            return _to(torch.tensor(args[1], dtype=first.dtype), DEVICE)
        if function is torch.Tensor.__setitem__ and not isinstance(args[2], torch.Tensor):
            first[args[1]].fill_(args[2])
            return None
        if function in (torch.Tensor.cpu, torch.Tensor.tolist):
            found = _to(first, "cpu")
            return found if function is torch.Tensor.cpu else found.tolist()
        if function is torch.Tensor.numpy:
            raise TypeError(f"can't convert {DEVICE} device type tensor to numpy")
        if function is torch.Tensor.__deepcopy__:
            return copy.deepcopy(*args)
        return function(*args, **kwargs)


# --- torch.cuda -----------------------------------------------------------------------------------------


class _Stream:
    def __init__(self, device: object = None):
        self.device = device

    def wait_stream(self, other: _Stream) -> None:
        pass


class _Event:
    def record(self, stream: _Stream) -> None:
        pass

    def synchronize(self) -> None:
        pass


class EmulatedGraph:
    """A CUDA graph. n_replays: how often it was replayed."""

    def __init__(self):
        self.work, self.made, self.before, self.n_replays = [], {}, {}, 0

    def captured(self, operation: Callable, name: str, args: tuple, kwargs: dict) -> object:
        """The result of an operation. What it changes is as before at the end of the capture."""
        for tensor in _written(operation, args, kwargs):
            if _place(tensor) not in self.made:
                self.before.setdefault(_place(tensor), (tensor.untyped_storage(), tensor.untyped_storage().clone()))
        found, given = _carried_out(operation, name, args, kwargs), {_place(t) for t in _tensors((args, kwargs))}
        self.made |= {_place(tensor): tensor for tensor in _tensors(found) if _place(tensor) not in given}
        self.work.append((operation, name, args, kwargs, _tensors(found)))
        return found

    def end_capture(self) -> None:
        for storage, values in self.before.values():
            storage.copy_(values)

    def replay(self) -> None:
        """Repeat the operations, with the values of the day, into the same memory."""
        self.n_replays += 1
        for *work, results in self.work:
            for there, here in zip(results, _tensors(_carried_out(*work)), strict=True):
                if _place(there) != _place(here):
                    there.copy_(here)


@contextlib.contextmanager
def _capture(graph: EmulatedGraph, pool: object, stream: _Stream) -> Iterator[None]:
    _state.graph = graph
    try:
        yield
    finally:
        _state.graph = None
        graph.end_capture()


class _Generator(torch.Generator):
    """A generator of random numbers. is_there: whether of those on the device."""

    def __new__(cls, device: object = "cpu") -> _Generator:
        found = super().__new__(cls, "cpu")
        found.is_there = _is_there(device)
        return found


@contextlib.contextmanager
def emulated_gpu(memory: int = 1 << 36) -> Iterator[None]:
    """Within, torch finds one CUDA device, of so many bytes of memory."""
    properties = types.SimpleNamespace(total_memory=memory)
    fakes = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_properties": lambda device: properties,
        "synchronize": lambda device: None,
        "current_stream": _Stream,
        "stream": contextlib.nullcontext,
        "graph_pool_handle": lambda: None,
        "Stream": _Stream,
        "Event": _Event,
        "CUDAGraph": EmulatedGraph,
        "graph": _capture,
    }
    with contextlib.ExitStack() as stack:
        for name, fake in fakes.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, fake))
        stack.enter_context(mock.patch.object(torch, "Generator", _Generator))
        stack.enter_context(_Functions())
        stack.enter_context(_Operations())
        yield
