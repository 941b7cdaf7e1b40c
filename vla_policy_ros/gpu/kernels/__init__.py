# SPDX-License-Identifier: Apache-2.0
"""Kernel sources, as package data; `gpu.nvrtc` compiles them."""
