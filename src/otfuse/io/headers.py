"""What a folder's weight files hold, read from their headers: no weight is loaded."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from otfuse.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MOST_HEADER = 100_000_000  # bytes; the same limit as safetensors' own


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A stored tensor: its type, its shape, the file (a name inside the checkpoint's folder) and where its bytes begin there."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: str
    offset: int = 0

    @property
    def bytes(self) -> int:
        """How many there are."""
        return prod(self.shape) * self.dtype.itemsize


def read_weights(folder: Path, *, allow_pickle: bool) -> tuple[dict[str, TensorInfo], bool]:
    """The tensors of all weight files in ``folder`` by name, and whether they are pickled.

    Raises :class:`CheckpointError` for absent, pickled (unless allowed), truncated or incomplete files.
    """
    for stem, read in (("model.safetensors", _safetensors), ("pytorch_model.bin", _pickle)):
        index, single = folder / f"{stem}.index.json", folder / stem
        if not (index.is_file() or single.is_file()):
            continue
        pickled = read is _pickle
        if pickled and not allow_pickle:
            raise _pickled(folder, single.name if single.is_file() else index.name)
        # The single file wins when both are there, as it does in transformers.
        return (read(single) if single.is_file() else _sharded(index, read)), pickled
    names = sorted(p.name for p in folder.iterdir() if p.suffix in (*PICKLES, ".safetensors"))
    if names and not names[0].endswith(".safetensors") and not allow_pickle:
        raise _pickled(folder, names[0])
    found = f" ({', '.join(names[:3])} is none of the names that are read)" if names else ""
    msg = f"checkpoint {folder}: no weights{found}; expected model.safetensors, or its shards with model.safetensors.index.json"
    raise CheckpointError(msg)


def _pickled(folder: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {folder}: {name} is a pickle file, which can run code when it is read; convert it to safetensors, "
        "or pass --allow-pickle to load its weights only"
    )


def _sharded(index: Path, read: Any) -> dict[str, TensorInfo]:
    data = read_json(index)
    where = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        msg = f"checkpoint {index.parent}: {index.name} has no 'weight_map' from tensors to files; download it again"
        raise CheckpointError(msg)
    shards = {}
    for name in sorted(set(where.values())):
        path = index.parent / name
        if "/" in name or "\\" in name or not path.is_file():
            msg = f"checkpoint {index.parent}: shard {name}, named in {index.name}, is missing; download it again"
            raise CheckpointError(msg)
        shards[name] = read(path)
    lost = [tensor for tensor, name in where.items() if tensor not in shards[name]]
    if lost:
        msg = (
            f"checkpoint {index.parent}: {len(lost)} tensors named in {index.name} are missing from the shards, "
            f"first {lost[0]!r} from {where[lost[0]]}; download it again"
        )
        raise CheckpointError(msg)
    return {tensor: shards[name][tensor] for tensor, name in where.items()}


def read_json(path: Path) -> Any:
    """The JSON value in ``path``; CheckpointError if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        msg = f"checkpoint {path.parent}: {path.name} is not valid JSON (line {error.lineno}: {error.msg}); mend that line"
    except UnicodeDecodeError:
        msg = f"checkpoint {path.parent}: {path.name} is not text in UTF-8; download it again"
    except OSError as error:
        msg = f"checkpoint {path.parent}: {path.name} cannot be read ({error.strerror}); check its permissions"
    raise CheckpointError(msg)


def _broken(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {path.parent}: {path.name} is truncated or damaged ({reason}); download it again"
    )


def _safetensors(path: Path) -> dict[str, TensorInfo]:
    """Format: 8 bytes little-endian header length, the header as JSON, then the data up to the end of the file."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            if not 0 < length <= min(size - 8, _MOST_HEADER):
                raise _broken(path, f"its header does not fit into {size} bytes")
            header = json.loads(file.read(length))
        return _entries(path, header, size - 8 - length, 8 + length)
    except OSError as error:
        msg = f"checkpoint {path.parent}: {path.name} cannot be read ({error.strerror}); check its permissions"
        raise CheckpointError(msg) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _broken(path, "its header is not what safetensors writes") from None


def _entries(path: Path, header: dict[str, Any], data: int, begin: int) -> dict[str, TensorInfo]:
    tensors, end = {}, 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            msg = f"checkpoint {path.parent}: tensor {name!r} in {path.name} has the unknown type {entry['dtype']}; convert it"
            raise CheckpointError(msg)
        first, last = entry["data_offsets"]
        info = TensorInfo(DTYPES[entry["dtype"]], tuple(int(n) for n in entry["shape"]), path.name, begin + first)
        if last - first != info.bytes:
            raise _broken(path, f"tensor {name!r} has the wrong length")
        tensors[name], end = info, max(end, last)
    if end != data:
        raise _broken(path, f"{end} bytes of weights expected, {data} found")
    return tensors


def _pickle(path: Path) -> dict[str, TensorInfo]:
    return {name: TensorInfo(t.dtype, tuple(t.shape), path.name) for name, t in unpickle(path, device="meta").items()}


def unpickle(path: Path, *, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of a pickled state dict, loaded with ``weights_only=True``: no code of the file runs."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        msg = f"checkpoint {path.parent}: {path.name} cannot be read ({error.strerror}); check its permissions"
        raise CheckpointError(msg) from None
    except Exception as error:  # noqa: BLE001 - a hostile pickle may raise anything
        reason = str(error).strip().split("\n")[0].split(". ")[0].rstrip(".") or type(error).__name__
        msg = f"checkpoint {path.parent}: {path.name} cannot be read as weights only ({reason}); convert it to safetensors"
        raise CheckpointError(msg) from None
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        msg = f"checkpoint {path.parent}: {path.name} holds more than named tensors; save the model's state_dict alone"
        raise CheckpointError(msg)
    return state
