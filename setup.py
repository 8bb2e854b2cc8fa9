"""Package metadata of opnorm."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="opnorm",
    version="0.1.0",
    description="Operator norms of network Jacobians: measure, attack, regularise.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["opnorm", "opnorm.*"]),
    package_data={"opnorm": ["py.typed"], "opnorm.data": ["assets/*"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "chex>=0.1.90",
        "flax>=0.12",
        # Reads pictures that do not fit into memory ahead of their use.
        "grain>=0.2.12",
        "jax>=0.10,<0.12",
        "matplotlib>=3.9",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.30",
        "pillow>=10.3",
        "tensorflow-datasets>=4.9.9",
        # TensorFlow Datasets imports it without declaring it.
        "importlib_resources>=6.4",
        # The format of prepared data that is read without TensorFlow.
        "array_record>=0.8; platform_system == 'Linux'",
        "tqdm>=4.66",
    ],
    extras_require={
        "cuda12": ["jax[cuda12]>=0.10,<0.12"],
        "cuda13": ["jax[cuda13]>=0.10,<0.12"],
        "tpu": ["jax[tpu]>=0.10,<0.12"],
        "test": [
            "hypothesis>=6.100",
            # An independent Lanczos and Golub-Kahan to compare with.
            "matfree>=0.6",
            "mypy>=1.14",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "ipykernel>=6.29",
            "pytest>=8.2",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
            "scipy>=1.13",
            "submitit>=1.5",
        ],
        # Sweeps as jobs of a cluster.
        "cluster": ["submitit>=1.5"],
        # Independent implementations to compare attacks and networks with.
        "oracles": [
            "foolbox>=3.3",
            "timm>=1.0",
            "torch>=2.6",
            "torchattacks>=3.5",
            "torchvision>=0.21",
        ],
        "notebooks": ["ipykernel>=6.29", "jupyterlab>=4.2"],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
