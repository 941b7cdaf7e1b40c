# SPDX-License-Identifier: Apache-2.0
"""Readers of recorded episodes: LeRobot v2.0, v2.1 and v3.0, rosbag2, synthetic; and a LeRobot writer."""
