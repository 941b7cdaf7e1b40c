# SPDX-License-Identifier: Apache-2.0
"""Policies: the generic one that runs a bundle's stages and loop, and policies around a policy."""
