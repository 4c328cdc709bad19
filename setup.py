"""Thin joint between setuptools and CMake: everything else is in pyproject.toml and CMakeLists.txt."""

from setuptools import setup

setup(cmake_source_dir=".")
