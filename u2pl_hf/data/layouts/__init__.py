"""What lies where in known data sets: files → rows to prepare."""

from u2pl_hf.data.layouts.base import About, Layout, Row
from u2pl_hf.data.layouts.cityscapes import cityscapes_layout
from u2pl_hf.data.layouts.folder import folder_layout
from u2pl_hf.data.layouts.voc import voc_layout

__all__ = ["About", "Layout", "Row", "cityscapes_layout", "folder_layout", "voc_layout"]
