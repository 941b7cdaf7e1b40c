# SPDX-License-Identifier: Apache-2.0
"""Bundles of GR00T checkpoints: N1.5, N1.6 and N1.7."""
