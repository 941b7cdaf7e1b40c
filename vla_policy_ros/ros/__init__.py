# SPDX-License-Identifier: Apache-2.0
"""Everything that knows ROS 2: messages, QoS, parameters, lifecycle, diagnostics and the nodes."""
