# SPDX-License-Identifier: Apache-2.0
"""Runs a vision-language-action policy on a robot: camera frames and joint states in, action chunks out."""

# The generated messages live in a package of the same name: a checkout must find them beside its own modules.
__path__ = __import__('pkgutil').extend_path(__path__, __name__)
