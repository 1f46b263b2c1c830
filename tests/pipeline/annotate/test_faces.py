"""Faces: the given detector's boxes on photographs, and what becomes of a wrong or missing model."""

import builtins
import pickle

import numpy as np
import pytest
from PIL import Image

from pipeline.annotate.annotator import View
from pipeline.annotate.faces import MOST_FACES, MOST_OVERLAP, FacesAnnotator, best
from pipeline.errors import UserError
from pipeline.samples import Sample

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def annotator(real):
    made = FacesAnnotator(str(real / "weights/face_slim_320.onnx"))
    made = pickle.loads(pickle.dumps(made))  # as it travels to a worker
    made.setup()
    return made


def view(pixels: np.ndarray) -> View:
    return View(Sample(0, "u", "k"), pixels=pixels)


def found(annotator: FacesAnnotator, pixels: np.ndarray) -> dict:
    [row] = annotator.annotate([annotator.prepare(view(pixels))])
    assert set(row) == {field.name for field in annotator.columns}
    assert len(row["face_boxes"]) == 4 * row["faces"]
    return row


def portrait(real) -> np.ndarray:
    """A photograph of one face, from the front."""
    path = real / "alt_permissive/images/18f_d5e7fe9545bd.jpg"
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_portrait_has_one_face_and_its_mirror_image_has_it_mirrored(annotator, real):
    pixels = portrait(real)
    row, mirrored = found(annotator, pixels), found(annotator, pixels[:, ::-1])
    assert row["faces"] == mirrored["faces"] == 1
    left, top, right, bottom = row["face_boxes"]
    assert 0 <= left < right <= 1
    assert 0 <= top < bottom <= 1
    assert row["face_share"] == pytest.approx((right - left) * (bottom - top), rel=1e-5)
    assert mirrored["face_boxes"] == pytest.approx([1 - right, top, 1 - left, bottom], abs=0.05)


def test_the_box_goes_where_the_face_goes(annotator, real):
    """On a larger ground the same picture's box is at its place in it."""
    pixels = portrait(real)
    height, width = pixels.shape[:2]
    ground = np.full((2 * height, 2 * width, 3), 128, np.uint8)
    ground[height:, :width] = pixels
    left, top, right, bottom = found(annotator, pixels)["face_boxes"]
    moved = found(annotator, ground)
    assert moved["faces"] == 1
    expected = [left / 2, 0.5 + top / 2, right / 2, 0.5 + bottom / 2]
    assert moved["face_boxes"] == pytest.approx(expected, abs=0.05)


def test_photographs_of_people_have_more_faces_than_photographs_of_flowers(annotator, real):
    def count(folder: str, number: int) -> int:
        paths = sorted((real / folder / "images").glob("*.jpg"))[:number]
        opened = (np.asarray(Image.open(path).convert("RGB")) for path in paths)
        return sum(found(annotator, pixels)["faces"] > 0 for pixels in opened)

    assert count("flickr8k_875", 60) >= 8
    assert count("flowers_400", 60) <= 2


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 900, 3), (240, 320, 3)])
def test_pictures_without_a_face_have_none(annotator, shape):
    row = found(annotator, np.full(shape, 90, np.uint8))
    assert row == {"faces": 0, "face_share": 0.0, "face_boxes": []}


def test_of_overlapping_boxes_the_likeliest_stays():
    boxes = np.array([[0, 0, 1, 1], [0, 0, 0.9, 1], [0.5, 0.5, 0.6, 0.6], [0, 0, 1, 0.95]])
    assert best(boxes, np.array([0.8, 0.95, 0.9, 0.99])).tolist() == [3, 2]
    assert best(boxes[:0], np.zeros(0)).tolist() == []


def test_what_stays_overlaps_little_and_covers_what_falls():
    rng = np.random.default_rng(0)
    corner = rng.random((300, 2)) * 0.8
    boxes = np.concatenate([corner, corner + 0.02 + rng.random((300, 2)) * 0.18], 1)
    odds = rng.random(300)
    kept = best(boxes, odds).tolist()

    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        common = max(0, sides[0]) * max(0, sides[1])
        return common / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common)

    assert len(kept) <= MOST_FACES
    assert sorted(odds[kept], reverse=True) == odds[kept].tolist()
    pairs = [(i, j) for i in kept for j in kept if i != j]
    assert all(overlap(boxes[i], boxes[j]) <= MOST_OVERLAP for i, j in pairs)
    if len(kept) < MOST_FACES:
        fallen = set(range(300)) - set(kept)
        assert all(
            any(overlap(boxes[i], boxes[j]) > MOST_OVERLAP and odds[j] >= odds[i] for j in kept)
            for i in fallen
        )


def test_the_model_is_part_of_the_name_and_of_the_config(annotator):
    assert annotator.model.startswith("face_slim_320-")
    assert annotator.config["model"].startswith(annotator.model[-8:])
    assert annotator.environment["device"] == "cpu"


def test_a_missing_or_foreign_model_is_one_line(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        FacesAnnotator(str(tmp_path / "none.onnx"))
    (tmp_path / "text.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="is no face detector") as raised:
        FacesAnnotator(str(tmp_path / "text.onnx")).setup()
    assert "\n" not in raised.value.message


def test_without_onnxruntime_the_line_says_what_to_install(tmp_path, monkeypatch):
    def refuse(name: str, *args, **kwargs):
        if name == "onnxruntime":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    real_import = builtins.__import__
    (tmp_path / "some.onnx").write_bytes(b"")
    made = FacesAnnotator(str(tmp_path / "some.onnx"))
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError) as raised:
        made.setup()
    assert raised.value.hint == "pip install 'recaption[faces]'"
