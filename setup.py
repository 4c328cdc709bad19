"""The thin joint of setuptools and CMake; the rest is in pyproject.toml and CMakeLists.txt."""

from setuptools import setup

setup(cmake_source_dir=".")
