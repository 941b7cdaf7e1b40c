# SPDX-License-Identifier: Apache-2.0
"""Types, specs, protocols, errors, clocks and latency windows: the words every other room uses; numpy only."""
