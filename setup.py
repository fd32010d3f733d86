"""What pyproject.toml cannot say: the package's rooms, found, beside the two folders of data that ship inside the
package."""

from setuptools import find_namespace_packages, setup

rooms = find_namespace_packages(include=["melora_bench*"], exclude=["*__pycache__*"])
setup(packages=[*rooms, "melora_bench.configs", "melora_bench.published"])
