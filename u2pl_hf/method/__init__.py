"""The methods, one file each, and their shared parts: tensors in, tensors out."""

from u2pl_hf.fields import setting
from u2pl_hf.method import ael, fixmatch, suponly, u2pl, unimatch_v2  # noqa: F401 - importing a method registers it
from u2pl_hf.method.base import METHODS, MethodSettings, Step, StepOutput, register
from u2pl_hf.method.batch import Batch

__all__ = ["METHODS", "Batch", "MethodSettings", "Step", "StepOutput", "register", "setting"]
