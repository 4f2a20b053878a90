"""Data of models that read images among words: rows that are not examples, and images in other shapes."""

from __future__ import annotations

import numpy as np
import pytest

from otfuse.errors import DataError
from otfuse.io.data import from_arrays, load_data

NAMES = ("input_ids", "pixel_values", "image_grid_thw", "image_sizes")
CONFIG = {
    "image_token_id": 60, "text_config": {"vocab_size": 50, "max_position_embeddings": 16},
    "vision_config": {"num_channels": 3, "image_size": 8},
}  # fmt: skip
IDS = np.full((3, 4), 60)


def read(config=CONFIG, **arrays):
    return from_arrays({"input_ids": IDS} | arrays, input_names=NAMES, config=config)


def floats(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


def test_patches_are_counted_by_their_grid_and_grids_by_example():
    data = read(pixel_values=floats(36, 5), image_grid_thw=np.array([[1, 2, 2], [1, 2, 4]] * 3))
    assert data.size == 3
    assert {name: counts.tolist() for name, counts in data.counts.items()} == {
        "pixel_values": [12, 12, 12], "image_grid_thw": [2, 2, 2],
    }  # fmt: skip
    assert len(data.take(slice(0, 2)).inputs["image_grid_thw"]) == 4


def test_grids_and_patches_example_by_example_are_laid_end_to_end(tmp_path):
    import datasets

    grids, patches = np.array([[[1, 2, 2]]] * 3), floats(3, 4, 5)
    plain = read(pixel_values=patches.reshape(12, 5), image_grid_thw=grids[:, 0])
    folder = tmp_path / "rows"
    columns = {"input_ids": IDS.tolist(), "pixel_values": patches.tolist(), "image_grid_thw": grids.tolist()}
    datasets.Dataset.from_dict(columns).save_to_disk(folder)
    for found in (
        read(pixel_values=patches, image_grid_thw=grids),
        load_data(folder, input_names=NAMES, config=CONFIG),
    ):
        assert {n: a.shape for n, a in found.inputs.items()} == {n: a.shape for n, a in plain.inputs.items()}
        assert np.array_equal(found.inputs["pixel_values"], plain.inputs["pixel_values"])
        assert found.counts["pixel_values"].tolist() == [4, 4, 4]


def test_images_of_unequal_size_in_a_folder_of_rows(tmp_path):
    import datasets

    columns = {
        "input_ids": IDS.tolist(),
        "pixel_values": [floats(n, 5).tolist() for n in (4, 8, 4)],
        "image_grid_thw": [[[1, 2, n // 2]] for n in (4, 8, 4)],
    }
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "rows")
    found = load_data(tmp_path / "rows", input_names=NAMES, config=CONFIG)
    assert found.counts["pixel_values"].tolist() == [4, 8, 4]
    assert found.inputs["pixel_values"].shape == (16, 5)


@pytest.mark.parametrize("shape", [(3, 3, 8, 8), (6, 3, 8, 8), (3, 2, 3, 8, 8), (3, 1, 2, 3, 8, 8)])
def test_images_one_or_several_to_an_example(shape):
    data = read(pixel_values=floats(*shape))
    assert data.size == 3
    assert len(data.take(slice(0, 1)).inputs["pixel_values"]) == shape[0] // 3


REFUSED = {
    "patches": ({"pixel_values": floats(11, 5), "image_grid_thw": np.array([[1, 2, 2]] * 3)}, r"11 patches, 'image_grid_thw' counts 12; give"),
    "grids": ({"pixel_values": floats(16, 5), "image_grid_thw": np.array([[1, 2, 2]] * 4)}, r"'image_grid_thw' has 4 rows for 3 examples; give one image"),
    "flat grid": ({"pixel_values": floats(12, 5), "image_grid_thw": np.array([4, 4, 4])}, r"'image_grid_thw' has shape \[3\], wanted \[images, 3\]; reshape"),
    "images": ({"pixel_values": floats(4, 3, 8, 8)}, r"'pixel_values' has 4 rows for 3 examples; give one image to every example"),
    "channels": ({"pixel_values": floats(3, 2, 4, 8, 8)}, r"the model takes \[examples, 3, height, width\]"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_one_sentence(what):
    arrays, sentence = REFUSED[what]
    with pytest.raises(DataError, match=sentence) as caught:
        read(**arrays)
    assert "\n" not in str(caught.value)


def test_only_models_that_read_images_among_words_take_several_to_an_example():
    with pytest.raises(DataError, match="'pixel_values' has 6 examples, 'input_ids' has 3; give as many of each"):
        read(config={"vision_config": CONFIG["vision_config"]}, pixel_values=floats(6, 3, 8, 8))
