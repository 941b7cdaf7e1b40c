# SPDX-License-Identifier: Apache-2.0
"""Chunks against the truth: error, smoothness and timing, tolerances, and the reports made of them."""
