# SPDX-License-Identifier: Apache-2.0
"""The nodes: read parameters, build plain objects, create entities, forward callbacks."""
