"""Difference hashes and the pairs that are near, against loops over pixels and pairs."""

import numpy as np
import pytest
from PIL import Image

from tests.data.rows import encode, make_source
from u2pl_hf.data import duplicates
from u2pl_hf.data.demo import DemoSpec, render
from u2pl_hf.data.duplicates import difference_hash, look_at, near_pairs

IMAGES = [render(DemoSpec(), "train", number)[0] for number in range(12)]


def shrunk_jpeg(image: np.ndarray, side: int, quality: int) -> bytes:
    return encode(
        np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)), "JPEG", quality=quality
    )


def signs_that_differ(left, right) -> int:
    return sum(a != b for a, b in zip(left.tolist(), right.tolist(), strict=True))


def test_the_hash_says_which_pixel_is_darker_than_the_next():
    small = np.random.default_rng(0).permutation(72).astype(np.uint8).reshape(8, 9) * 3
    expected = [1 if small[y, x] < small[y, x + 1] else -1 for y in range(8) for x in range(8)]
    assert difference_hash(Image.fromarray(small)).tolist() == expected


@pytest.mark.parametrize("block", [2**22, 50])
def test_near_pairs_are_those_of_a_loop(monkeypatch, block):
    monkeypatch.setattr(duplicates, "BLOCK", block)
    rng = np.random.default_rng(1)
    hashes = rng.choice(np.array([-1, 1], np.int8), (60, 64))
    for copy in range(20):  # of 0 to 9 other signs, in either order
        turned = rng.choice(64, copy % 10, replace=False)
        hashes[40 + copy] = hashes[copy % 7]
        hashes[40 + copy, turned] *= -1
    left, right = hashes[::2], hashes[1::2]
    for distance in (0, 4):
        across = [(signs_that_differ(a, b), i, j) for i, a in enumerate(left) for j, b in enumerate(right)]
        within = [(signs_that_differ(hashes[i], hashes[j]), i, j) for i in range(60) for j in range(i + 1, 60)]
        for expected, pair in ((across, (left, right)), (within, (hashes,))):
            expected = sorted(found for found in expected if found[0] <= distance)
            assert expected and near_pairs(*pair, distance=distance, most=1000) == (len(expected), expected)
            assert near_pairs(*pair, distance=distance, most=3) == (len(expected), expected[:3])


def test_no_images_have_no_pairs():
    none = np.empty((0, 64), np.int8)
    assert (
        near_pairs(none)
        == near_pairs(none, np.ones((3, 64), np.int8))
        == near_pairs(np.ones((1, 64), np.int8))
        == (0, [])
    )


def test_copies_are_found_and_others_are_not():
    """PNG against JPEG of other sizes, one so large that its decoder shrinks it."""
    originals = look_at(make_source([encode(image) for image in IMAGES]), range(12), lambda number: None)
    copies = [
        shrunk_jpeg(image, side, 60) for image, side in zip(IMAGES, [115] * 6 + [64] * 3 + [600] * 3, strict=True)
    ]
    found = look_at(make_source(copies), range(12), lambda number: None)
    count, pairs = near_pairs(originals.hashes, found.hashes)
    assert count == 12 and {(i, j) for _, i, j in pairs} == {(i, i) for i in range(12)}
    assert near_pairs(originals.hashes) == (0, [])
    assert found.sizes[[0, 6, 9]].tolist() == [[115, 115], [64, 64], [600, 600]]


def test_bad_images_are_told_and_left_out():
    jpeg, done = shrunk_jpeg(IMAGES[0], 300, 90), []
    source = make_source([b"no image", jpeg, jpeg[: len(jpeg) // 2], encode(IMAGES[1])])
    found = look_at(source, [3, 2, 1, 0], done.append)
    assert found.ids == ["im_3", "im_1"] and sum(done) == 4 and found.hashes.shape == (2, 64)
    assert len(found.faults) == 2 and {line.split()[0] for line in found.faults} == {"image"}
    for row in (0, 2):  # as a stream that skips it would say
        with pytest.raises(ValueError) as error:
            source.read_image(row)
        assert str(error.value) in found.faults
