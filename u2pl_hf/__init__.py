"""U2PL: semi-supervised semantic segmentation using unreliable pseudo-labels, on the Hugging Face stack.

Importing this package registers the model with AutoConfig, AutoModel, AutoModelForSemanticSegmentation and
AutoImageProcessor. What it saves carries its code, so that others can load it with `trust_remote_code=True`.
"""

import importlib

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation

from u2pl_hf.model.configuration_u2pl import U2PLConfig
from u2pl_hf.model.image_processing_u2pl import U2PLImageProcessor
from u2pl_hf.model.modeling_u2pl import U2PLForSemanticSegmentation
from u2pl_hf.version import __version__

AutoConfig.register(U2PLConfig.model_type, U2PLConfig, exist_ok=True)
AutoModel.register(U2PLConfig, U2PLForSemanticSegmentation, exist_ok=True)
AutoModelForSemanticSegmentation.register(U2PLConfig, U2PLForSemanticSegmentation, exist_ok=True)
AutoImageProcessor.register(U2PLConfig, slow_image_processor_class=U2PLImageProcessor, exist_ok=True)

# These make save_pretrained copy the files of u2pl_hf/model.
U2PLConfig.register_for_auto_class()
U2PLForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")

# Imported when they are asked for, since what they need takes seconds.
_LATER = {"predict": "u2pl_hf.evaluation.inference", "train": "u2pl_hf.training.api"}

__all__ = ["U2PLConfig", "U2PLForSemanticSegmentation", "U2PLImageProcessor", "__version__", *_LATER]


def __getattr__(name: str):
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'u2pl_hf' has no attribute '{name}'")
