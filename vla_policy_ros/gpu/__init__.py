# SPDX-License-Identifier: Apache-2.0
"""The GPU: device, streams, events, buffers, graphs, and the kernels around the networks."""
