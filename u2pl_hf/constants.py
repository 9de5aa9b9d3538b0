"""Numbers that every part of the package agrees on."""

# Of labels: not to be learnt or scored.
IGNORE = 255
# ImageNet's, for pixels in [0, 1].
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
