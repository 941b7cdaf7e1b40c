# SPDX-License-Identifier: Apache-2.0
"""From chunks to motion: strategies, limits, states and watchdogs of the executor; pure, no clock, no threads."""
