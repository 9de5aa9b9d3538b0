"""U2PL: semi-supervised semantic segmentation using unreliable pseudo-labels, on the Hugging Face stack.

Importing this package registers the model with AutoConfig, AutoModel and AutoModelForSemanticSegmentation.
"""

from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation

from u2pl_hf.model.configuration_u2pl import U2PLConfig
from u2pl_hf.model.modeling_u2pl import U2PLForSemanticSegmentation
from u2pl_hf.version import __version__

AutoConfig.register(U2PLConfig.model_type, U2PLConfig, exist_ok=True)
AutoModel.register(U2PLConfig, U2PLForSemanticSegmentation, exist_ok=True)
AutoModelForSemanticSegmentation.register(U2PLConfig, U2PLForSemanticSegmentation, exist_ok=True)


__all__ = ["U2PLConfig", "U2PLForSemanticSegmentation", "__version__"]
