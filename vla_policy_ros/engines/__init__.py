# SPDX-License-Identifier: Apache-2.0
"""Engines behind one face: named tensors in, named tensors out."""
