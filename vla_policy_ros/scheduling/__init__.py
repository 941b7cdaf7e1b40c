# SPDX-License-Identifier: Apache-2.0
"""Pure logic on stamps: which samples belong together. No clock, no threads."""
