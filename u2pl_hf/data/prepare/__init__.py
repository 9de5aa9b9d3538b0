"""Making a data set: layouts find the images and masks, archives read them, masks become class ids, shards are written.

Used from outside: `archives.list_members`; the layouts and CLASSES of `layouts.voc`, `cityscapes` and `folder`;
`dataset.prepare` and `check_output`.
"""
