"""What lies where in known data sets: files → rows to prepare."""

from u2pl_hf.data.prepare.layouts.base import Layout
from u2pl_hf.data.prepare.layouts.cityscapes import cityscapes_layout
from u2pl_hf.data.prepare.layouts.folder import folder_layout
from u2pl_hf.data.prepare.layouts.voc import voc_layout

__all__ = ["Layout", "cityscapes_layout", "folder_layout", "voc_layout"]
