# SPDX-License-Identifier: Apache-2.0
"""Starts the policy node. Every deployment fact is an argument: `ros2 launch vla_policy_ros policy.launch.py -s`."""

from __future__ import annotations

from launch import LaunchDescription

from vla_policy_ros.ros.launch_files import describe_node

# name, type, default, description
ARGUMENTS = (
    ('config', str, '', 'Deployment file for robot and policy; empty: the usual topics'),
    ('bundle', str, '', 'Folder of the policy bundle, or sample; wins over the deployment file'),
    ('engine', str, '', 'Engine that runs the stages, such as onnxruntime or tensorrt'),
    ('preprocess', str, '', 'Where images are preprocessed: cpu or gpu'),
    ('jpeg', str, '', 'What decodes JPEG: cpu or nvjpeg'),
    ('precision', str, '', 'Precision that the engine runs in: fp32, fp16, bf16, fp8 or int8'),
    ('plan_folder', str, '', 'Folder of TensorRT plans'),
    ('image_transport', str, '', 'raw or compressed, for every camera'),
    ('chunk_topic', str, '', 'Topic of the action chunks'),
    ('instruction', str, '', 'What the robot is told to do'),
    ('use_sim_time', bool, 'false', 'Follow /clock'),
    ('autostart', bool, 'true', 'Configure and activate at once; false: by ros2 lifecycle'),
    ('status_period_s', float, '1.0', 'Seconds between two statuses'),
)


def generate_launch_description() -> LaunchDescription:
    """Return what `ros2 launch` starts."""
    return describe_node('policy_node', ARGUMENTS)
