"""Numbers that every part of the package agrees on; model/, which is copied to the Hub, has its own."""

# Of labels: not to be learnt or scored.
IGNORE = 255
# ImageNet's, for pixels in [0, 1].
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
# Image files by their names, in small letters: of photographs, of masks, in lists and for predictions alike.
IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jfif", ".jp2", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".gif", ".avif"]
)


def default_palette(num_labels: int) -> list[list[int]]:
    """PASCAL VOC's colours: C rows of [r, g, b] in [0, 255]; class 0, the background, is black.

    The bits of the class id are dealt in turn to red, green and blue, lowest bits to the highest place.
    """
    return [
        [sum((class_id >> (3 * k + channel) & 1) << (7 - k) for k in range(8)) for channel in range(3)]
        for class_id in range(num_labels)
    ]
