# SPDX-License-Identifier: Apache-2.0
"""Where threads live: frames prepared ahead of inference, and the worker that infers."""
