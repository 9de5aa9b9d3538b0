"""Making a data set: layouts find the images and masks, archives read them, masks become class ids, shards are written.

Used from outside: `archives.list_members`, `layouts.voc_layout`, `cityscapes_layout` and `folder_layout`,
`convert.prepare` and `check_output`; `layouts.voc.CLASSES` and `layouts.cityscapes.CLASSES`.
"""
