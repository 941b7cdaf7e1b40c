# SPDX-License-Identifier: Apache-2.0
"""Installs the Python code where there is no ROS; every fact is in setup.cfg."""

from setuptools import setup

setup()
