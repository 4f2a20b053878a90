"""Data for a model: arrays in a file, a folder saved by `datasets`, a folder of images, or a text."""

from __future__ import annotations

import difflib
import logging
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from otfuse.core.dataset import Dataset
from otfuse.errors import DataError
from otfuse.io.companions import Own
from otfuse.io.counted import counts, laid_out
from otfuse.io.fit import check_fits, shift_right
from otfuse.program.outputs import VALUES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[np.generic]]

_TEXTS = (".txt", ".text", ".md")
# What names of inputs promise, whatever the model: other names are taken as they come.
_INTEGERS = ("_ids", "_mask", "labels")
_FLOATS = ("_values", "_features", "_embeds")
log = logging.getLogger(__name__)


def load_data(
    path: str | Path,
    *,
    input_names: Sequence[str],
    config: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    require_labels: bool = False,
    sequence_length: int | None = None,
    trust_remote_code: bool = False,
) -> Dataset:
    """The examples at ``path``, checked against the model's ``config``.

    ``input_names`` are the model's inputs; ``folder`` is its checkpoint's, for the tokenizer or image processor, whose own
    code runs only with ``trust_remote_code``.
    ``path`` is an ``.npz`` or ``.safetensors`` file, a folder saved by ``datasets``, an image folder (with one sub-folder
    per class, or flat without labels), or a text, cut into blocks of ``sequence_length`` tokens (128, or what the model
    takes if less). Floats become float32, integers int64. Raises :class:`DataError`.
    """
    where, config = Path(path), config or {}
    try:
        if not where.exists():
            raise DataError(f"data {path}: no such file or folder; check the path")
        if where.is_file():
            where.open("rb").close()  # readers of archives say that what they may not open is damaged, or absent
        arrays = _read(where, input_names, config, Own(folder, trust_remote_code), sequence_length)
    except OSError as error:
        what = "its permissions" if isinstance(error, PermissionError) else "the file"
        raise DataError(f"data {path}: cannot be read ({error.strerror or error}); check {what}") from None
    return from_arrays(arrays, input_names=input_names, config=config, require_labels=require_labels, where=str(path))


def from_arrays(
    arrays: Mapping[str, Any],
    *,
    input_names: Sequence[str],
    config: Mapping[str, Any] | None = None,
    require_labels: bool = False,
    where: str = "arrays",
) -> Dataset:
    """A checked dataset from arrays (or tensors) by name; ``labels`` are optional. Raises :class:`DataError`."""
    config = config or {}
    arrays = laid_out(arrays)
    names = _names(arrays, input_names, where)
    if require_labels and "labels" not in names:
        raise DataError(f"data {where}: no labels, which are needed here; add an array 'labels'")
    checked = {name: _convert(name, arrays[name], config, where) for name in names}
    several = counts(checked, config, where)
    first, sizes = names[0], {name: len(several.get(name, array)) for name, array in checked.items()}
    for name, array in checked.items():
        if sizes[name] != sizes[first]:
            raise DataError(
                f"data {where}: {name!r} has {sizes[name]} examples, {first!r} has {sizes[first]}; give as many of each"
            )
        if array.size == 0:
            raise DataError(f"data {where}: {name!r} is empty; give at least one example")
    labels = checked.pop("labels", None)
    _add_decoder_ids(checked, labels, input_names, config, where)
    dataset = Dataset(checked, labels, several)
    check_fits(dataset, config, where=where)
    return dataset


def _read(
    path: Path, names: Sequence[str], config: Mapping[str, Any], own: Own, length: int | None
) -> Mapping[str, Any]:
    if path.is_dir():
        if (path / "dataset_dict.json").is_file():
            splits = sorted(p.name for p in path.iterdir() if p.is_dir())
            hint = " or ".join(str(path / split) for split in splits)
            raise DataError(f"data {path}: this folder holds the splits {', '.join(splits)}; give one of them: {hint}")
        if (path / "dataset_info.json").is_file():
            from otfuse.io.hub_dataset import read_hub_dataset

            return read_hub_dataset(path, names, config, own, length)
        from otfuse.io.images import read_image_folder

        return read_image_folder(path, config, own)
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in _TEXTS:
        from otfuse.io.text import read_text

        return read_text(path, names, config, own, length)
    raise DataError(
        f"data {path}: unknown type {path.suffix or '(no suffix)'!r}; give .npz, .safetensors, .txt, an image folder, or a "
        "folder saved by datasets"
    )


def _read_npz(path: Path) -> Arrays:
    if not zipfile.is_zipfile(path):
        raise DataError(f"data {path}: truncated or not an .npz archive; write it again with numpy.savez")
    arrays: Arrays = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                arrays[name] = archive[name]
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError):
        raise DataError(f"data {path}: truncated or not an .npz archive; write it again with numpy.savez") from None
    except ValueError as error:
        if "pickle" not in str(error) and "Object arrays" not in str(error):
            raise DataError(f"data {path}: array {name!r} is damaged; write it again with numpy.savez") from None
        raise DataError(
            f"data {path}: {name!r} holds Python objects, which are pickled and refused; save numbers of one shape"
        ) from None
    return arrays


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError:
        raise DataError(f"data {path}: truncated or not a safetensors file; write it again") from None


def _names(arrays: Mapping[str, Any], wanted: Sequence[str], where: str) -> list[str]:
    """The arrays to use, inputs first; a name that is nearly right is an error, any other is left aside."""
    found = [name for name in wanted if name in arrays and name != "labels"]
    for name in arrays:
        lacking = [w for w in (*wanted, "labels") if w not in arrays]
        near = difflib.get_close_matches(name, lacking, n=1, cutoff=0.8)
        if name not in (*wanted, "labels") and near:
            raise DataError(f"data {where}: array {name!r} is none of the model's inputs; did you mean {near[0]!r}?")
    if not found:
        have, want = ", ".join(sorted(arrays)) or "none", ", ".join(wanted)
        raise DataError(
            f"data {where}: no array named as an input of the model: found {have}; wanted {want}; rename them"
        )
    unused = sorted(set(arrays) - set(found) - {"labels"})
    if unused:
        log.warning("data %s: arrays %s are no inputs of the model and are left aside", where, ", ".join(unused))
    return [*found, "labels"] if "labels" in arrays else found


def _wanted(name: str, config: Mapping[str, Any]) -> str | None:
    """``f``, ``i`` or None (as it comes)."""
    if name == "labels" and (config.get("problem_type") in VALUES or len(config.get("id2label") or {}) == 1):
        return "f"
    if name.endswith(_INTEGERS):
        return "i"
    return "f" if name.endswith(_FLOATS) else None


def _convert(name: str, value: Any, config: Mapping[str, Any], where: str) -> NDArray[np.generic]:
    """``value`` as an int64 or float32 array with an axis of examples."""
    if hasattr(value, "detach"):  # a tensor; numpy lacks its 16-bit brain floats
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    try:
        array = np.asarray(value)
    except ValueError:
        raise DataError(f"data {where}: {name!r} has rows of different lengths; pad them to one") from None
    if array.dtype.kind not in "fiub":
        what = {"O": "Python objects", "U": "text", "S": "text"}.get(array.dtype.kind, f"values of type {array.dtype}")
        raise DataError(f"data {where}: {name!r} holds {what}; give numbers")
    if array.ndim == 0:
        raise DataError(f"data {where}: {name!r} is a single number; its first axis must be the examples")
    wanted = _wanted(name, config)
    if array.dtype.kind != "f":
        if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
            raise DataError(f"data {where}: {name!r} has integers beyond 64 bits with a sign; give smaller ones")
        return array.astype(np.float32 if wanted == "f" else np.int64, copy=False)
    if not np.isfinite(array).all():
        raise DataError(f"data {where}: {name!r} has values that are not finite (NaN or infinite); clean the data")
    if wanted == "i":
        if (array != np.round(array)).any():
            raise DataError(f"data {where}: {name!r} must hold integers, its type is {array.dtype} with fractions")
        return array.astype(np.int64)
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32, copy=False)
    if not np.isfinite(narrow).all():
        raise DataError(f"data {where}: {name!r} has values too large for float32; scale the data")
    return narrow


def _add_decoder_ids(
    inputs: Arrays, labels: NDArray[np.generic] | None, names: Sequence[str], config: Mapping[str, Any], where: str
) -> None:
    """An encoder-decoder reads its labels shifted right by one, unless the data say what the decoder reads."""
    if not config.get("is_encoder_decoder") or "decoder_input_ids" not in names or "decoder_input_ids" in inputs:
        return
    if labels is None or labels.ndim != 2:
        raise DataError(
            f"data {where}: no array 'decoder_input_ids', which an encoder-decoder needs; add it, or 'labels' of [example, token]"
        )
    inputs["decoder_input_ids"] = shift_right(labels, config)
