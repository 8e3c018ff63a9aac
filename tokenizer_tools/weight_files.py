"""One file of weights: safetensors or a pickled .bin comes in; names, shapes and bytes go out, a tensor at a time.

The library judges whether a safetensors file is whole; the bytes are then copied by their place in the file, so that no
tensor passes through memory whole but the one whose rows are asked for. What is written is always safetensors.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from tokenizer_tools.command import UserError

if TYPE_CHECKING:
    import torch

SPAN_BYTES = 2**26  # at a time, so that Ctrl-C is heard
BLOCK_BYTES = 2**18  # stays in the processor's cache on its way from file to file
NOT_BY_THE_SYSTEM = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # another disk, an odd file system
HEADER_ALIGNMENT = 8
FLOAT_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # safetensors' names: torch's
TYPES = FLOAT_TYPES | {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor: its dtype as safetensors names it, its shape and its size in bytes."""

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


class WeightFile(Protocol):
    """A file of tensors, read one at a time."""

    path: Path

    @property
    def infos(self) -> dict[str, TensorInfo]:
        """Every tensor in the order in which it is to be written."""
        ...

    @property
    def metadata(self) -> dict[str, str] | None:
        """safetensors' `__metadata__`."""
        ...

    def copy(self, name: str, target: BinaryIO) -> int:
        """Write the bytes of a tensor to `target`; returns how many."""
        ...

    def rows(self, name: str, num_rows: int) -> torch.Tensor:
        """[num_rows, hidden]: the first rows of a matrix, in memory."""
        ...


class SafetensorsFile:
    """A safetensors file. Raises UserError if it is cut or broken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata, self._places = _read_header(path)
        self.infos = {name: info for name, (info, _) in self._places.items()}

    def copy(self, name: str, target: BinaryIO) -> int:
        """Write the bytes of a tensor to `target`; returns how many."""
        info, offset = self._places[name]
        return copy_bytes(self.path, offset, info.num_bytes, target)

    def rows(self, name: str, num_rows: int) -> torch.Tensor:
        """[num_rows, hidden]: the first rows of a matrix, in memory."""
        import torch

        info, offset = self._places[name]
        rows = torch.empty(num_rows, *info.shape[1:], dtype=getattr(torch, FLOAT_TYPES[info.dtype]))
        with self.path.open("rb") as source:
            source.seek(offset)
            source.readinto(tensor_bytes(rows))
        return rows


def _read_header(path: Path) -> tuple[dict[str, str] | None, dict[str, tuple[TensorInfo, int]]]:
    """Metadata, and {name: (info, offset in the file)} in the order of the offsets."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np"):  # checks the header, every shape and the size of the file
            pass
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
    except Exception as error:  # safetensors has its own error class, and the file's OSErrors
        raise UserError(f"{path}: not a whole safetensors file ({error}); fetch it again") from None
    metadata = header.pop("__metadata__", None)
    places = {
        name: (
            TensorInfo(entry["dtype"], tuple(entry["shape"]), entry["data_offsets"][1] - entry["data_offsets"][0]),
            8 + header_bytes + entry["data_offsets"][0],
        )
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    }
    return metadata, places


class PickledFile:
    """A .bin file of torch, mapped, never run (`weights_only`). Raises UserError if it is cut or holds other things."""

    metadata: dict[str, str] | None = {"format": "pt"}  # transformers asks for it

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def infos(self) -> dict[str, TensorInfo]:
        """Every tensor, wide types first and then by name, as safetensors' own writer has them."""
        tensors = self._load()
        names = {name: kind for kind, name in TYPES.items()}
        for name, tensor in tensors.items():
            dtype = str(getattr(tensor, "dtype", type(tensor).__name__)).removeprefix("torch.")
            if dtype not in names:
                raise UserError(f"{self.path}: {name} is a {dtype}, not a tensor of numbers; save plain weights")
        ordered = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
        return {
            name: TensorInfo(
                names[str(tensors[name].dtype).removeprefix("torch.")], tuple(tensors[name].shape), tensors[name].nbytes
            )
            for name in ordered
        }

    def copy(self, name: str, target: BinaryIO) -> int:
        """Write the bytes of a tensor to `target`; returns how many."""
        return target.write(tensor_bytes(self._load()[name]))

    def rows(self, name: str, num_rows: int) -> torch.Tensor:
        """[num_rows, hidden]: the first rows of a matrix, in memory."""
        return self._load()[name][:num_rows]

    def _load(self) -> dict[str, torch.Tensor]:
        """Mapped anew for each tensor: pages that were read count as our memory until their mapping goes."""
        import pickle

        import torch

        try:
            tensors = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError:
            raise UserError(
                f"{self.path}: holds pickled code, which is not run; fetch the model as safetensors"
            ) from None
        except Exception as error:  # torch raises whatever its reader raises: RuntimeError, EOFError, OSError, ...
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{self.path}: no whole .bin file of torch ({reason}); fetch it again, or as safetensors"
            ) from None
        if not isinstance(tensors, dict):
            raise UserError(f"{self.path}: holds a {type(tensors).__name__}, not tensors by name; save a state dict")
        return tensors


def open_weights(path: Path) -> WeightFile:
    """Open a file of weights by its name. Raises UserError if it is cut or broken."""
    return SafetensorsFile(path) if path.suffix == ".safetensors" else PickledFile(path)


def copy_bytes(path: Path, offset: int, num_bytes: int, target: BinaryIO) -> int:
    """Write so many bytes of a file from `offset` on to `target`; returns how many. The system copies where it can."""
    target.flush()
    start = target.tell()
    with path.open("rb", buffering=0) as source:
        done = 0
        while done < num_bytes:
            count = min(num_bytes - done, SPAN_BYTES)
            try:
                copied = os.copy_file_range(source.fileno(), target.fileno(), count, offset + done, start + done)
            except OSError as error:
                if error.errno not in NOT_BY_THE_SYSTEM:
                    raise
                copied = _copy_block(source, offset + done, target, start + done, min(count, BLOCK_BYTES))
            if not copied:
                raise UserError(f"{path}: has become shorter while it was read; run again when it is whole")
            done += copied
    target.seek(start + num_bytes)
    return num_bytes


def _copy_block(source: BinaryIO, offset: int, target: BinaryIO, start: int, num_bytes: int) -> int:
    block = os.pread(source.fileno(), num_bytes, offset)
    return os.pwrite(target.fileno(), block, start)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in the order of its rows, not copied if they lie so in memory."""
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy().data


def write_safetensors(
    path: Path,
    infos: Mapping[str, TensorInfo],
    metadata: dict[str, str] | None,
    write: Callable[[str, BinaryIO], int],
    last: Collection[str] = (),
) -> None:
    """Write the header of `infos`, then let `write(name, file)` put each tensor in its place; it returns its bytes.

    Those named `last` come after all others, to leave time for making them.
    """
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    starts = {}
    for name, info in infos.items():
        start, end = end, end + info.num_bytes
        starts[name] = start
        header[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        first_byte = file.tell()
        for name in sorted(infos, key=lambda name: name in last):
            file.seek(first_byte + starts[name])
            num_bytes = write(name, file)
            announced = infos[name].num_bytes
            assert num_bytes == announced, f"{name}: {num_bytes} bytes written, {announced} announced"
