"""What setup.cfg cannot say: recipes and tables lie in training_scripts/, and are installed as parts of the package."""

from setuptools import find_packages, setup

DATA = ("recipes", "tables")

setup(
    packages=[*find_packages(include=["u2pl_hf*"]), *(f"u2pl_hf.{kind}" for kind in DATA)],
    package_dir={f"u2pl_hf.{kind}": f"training_scripts/{kind}" for kind in DATA},
)
