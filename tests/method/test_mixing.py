import numpy as np
import pytest
import torch

from u2pl_hf.method import mixing


def batch(size: int = 16, images: int = 3, classes: int = 4):
    """Image and pseudo-label carry the same number, so that a pixel shows where it came from."""
    labels = torch.randint(0, classes, (images, size, size))
    labels[:, 0] = 255
    return torch.stack([labels.float() + 10 * torch.arange(images).view(-1, 1, 1)] * 3, dim=1), labels


@pytest.mark.parametrize(("height", "width"), [(16, 16), (33, 17), (9, 40)])
def test_boxes_have_half_the_area(height, width):
    boxes = mixing.draw_boxes(2000, height, width, torch.device("cpu")).numpy()
    widths, heights = boxes.any(1).sum(1), boxes.any(2).sum(1)
    assert (boxes.sum((1, 2)) == widths * heights).all()  # rectangles
    assert (heights == np.round(height * width / 2 / widths)).all()
    assert set(widths) == set(range(int(width / 2 + 1), width))
    left = boxes.any(1).argmax(1)
    for w in set(widths):
        assert set(left[widths == w]) == set(range(width - w + 1))


def test_cutmix_takes_the_box_from_the_next_image():
    images, labels = batch()
    mixed, mixed_labels = mixing.cutmix(images, labels, 4)
    for b in range(3):
        own = mixed[b, 0] == images[b, 0]
        nxt = mixed[b, 0] == images[(b + 1) % 3, 0]
        assert (own | nxt).all() and nxt.any() and own.any()
        assert torch.equal(mixed_labels[b], torch.where(nxt, labels[(b + 1) % 3], labels[b]))


def test_cutout_blanks_image_and_label():
    images, labels = batch()
    mixed, mixed_labels = mixing.cutout(images + 1, labels, 4)
    blank = mixed[:, 0] == 0
    assert blank.flatten(1).any(1).all()
    assert (mixed_labels[blank] == 255).all()
    assert torch.equal(mixed_labels[~blank], labels[~blank])


def test_classmix_keeps_half_of_the_classes():
    images, labels = batch(classes=5)
    mixed, mixed_labels = mixing.classmix(images, labels, 5)
    for b in range(3):
        kept = mixed[b, 0] == images[b, 0]
        for c in range(5):
            where = labels[b] == c
            assert kept[where].all() or not kept[where].any()
        assert len(labels[b][kept].unique()) == 5 // 2
        assert torch.equal(mixed_labels[b][~kept], labels[(b + 1) % 3][~kept])
        assert not kept[labels[b] == 255].any()


@pytest.mark.parametrize("name", list(mixing.STRONG_AUGMENTATIONS))
def test_edge_cases(name):
    mix = mixing.STRONG_AUGMENTATIONS[name]
    images, labels = batch(images=1, classes=2)
    before = images.clone(), labels.clone()
    mixed, mixed_labels = mix(images, labels, 2)
    assert torch.equal(images, before[0]) and torch.equal(labels, before[1])
    assert mixed.shape == images.shape and mixed_labels.shape == labels.shape
    padding = torch.full_like(labels, 255)
    assert (mix(images, padding, 2)[1] == 255).all()
