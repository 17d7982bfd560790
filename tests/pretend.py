"""An accelerator that isn't there: device "meta", whose tensors hold their numbers on the CPU.

Within ``Pretend()`` an operation that mixes the two devices is an error, as on a GPU, and what would wait for the
device (reading a value) is noted.
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.is_nonzero, aten.nonzero, aten.equal, aten.masked_select}
CROSSING = {aten._to_copy, aten.copy_, aten.index, aten.index_put_}


class There(torch.Tensor):
    """A tensor on the pretended device."""

    @staticmethod
    def __new__(cls, raw):
        return torch.Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), dtype=raw.dtype, device="meta", requires_grad=False
        )

    def __init__(self, raw):
        self.raw = raw

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} outside of Pretend()")


def there(x):
    return There(x) if type(x) is torch.Tensor else x


def here(x):
    return x.raw if isinstance(x, There) else x


class Literals(TorchFunctionMode):
    """Tensors of Python numbers: made on the CPU, then moved."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor):
            device = kwargs.get("device")
            if device is not None and torch.device(device).type == "meta":
                return func(*args, **{**kwargs, "device": "cpu"}).to("meta")
        return func(*args, **kwargs)


class Pretend(TorchDispatchMode):
    """Runs on the CPU, checks devices. ``reads`` and ``moves`` hold what would wait, what crosses."""

    def __init__(self):
        super().__init__()
        self.reads, self.moves, self.literals = [], [], Literals()

    def __enter__(self):
        self.literals.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.literals.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, torch.Tensor)]
        on, packet = [isinstance(a, There) for a in tensors], func.overloadpacket
        off = [a for a in tensors if not isinstance(a, There) and a.ndim > 0]
        asked = kwargs.pop("device", None)
        if any(on) and packet in READS:
            self.reads.append(str(func))
        if any(on) and off and packet not in CROSSING:
            raise RuntimeError(f"{func} mixes devices: {[(tuple(a.shape), a.device.type) for a in tensors]}")
        to = torch.device(asked).type == "meta" if asked is not None else any(on)
        if packet is aten._to_copy and to != any(on):
            self.moves.append(tuple(tensors[0].shape))
        if "dtype" in kwargs or asked is not None:
            kwargs.pop("pin_memory", None)
        out = func(*tree_map(here, args), **tree_map(here, kwargs))
        if func._schema.is_mutable and args and isinstance(args[0], There):
            return args[0]
        return tree_map(there, out) if to else out
