# SPDX-License-Identifier: Apache-2.0
"""Starts the replay node: a recorded episode as cameras, joint states, instruction and true chunks."""

from __future__ import annotations

from launch import LaunchDescription

from vla_policy_ros.ros.launch_files import describe_node

# name, type, default, description
ARGUMENTS = (
    ('dataset', str, 'sample', 'LeRobot dataset or rosbag2, or sample'),
    ('episodes', str, '0', 'Episodes to play: 0, or 0,2,5-8, or all'),
    ('mode', str, 'timed', 'timed, fast or lockstep'),
    ('rate', float, '1.0', 'Factor on the recorded pace'),
    ('loop', bool, 'false', 'Start over after the last episode'),
    ('start_s', float, '0.0', 'Seconds into every episode at which to begin'),
    ('end_s', float, '0.0', 'Seconds into every episode at which to end; 0: whole'),
    ('image_transport', str, 'raw', 'raw or compressed'),
    ('reliability', str, 'reliable', 'reliable or best_effort'),
    ('camera_topic', str, '/camera/{camera}/image_raw', 'Topic of each camera'),
    ('joint_topic', str, '/joint_states', 'Topic of the joint states'),
    ('truth_topic', str, 'action_chunk_truth', 'Topic of the true chunks'),
    ('horizon', int, '16', 'Rows of a true chunk'),
    ('execution_horizon', int, '1', 'Steps from one true chunk to the next'),
    ('publish_clock', bool, 'false', 'Publish /clock'),
    ('wait_for_policy', bool, 'true', 'Begin only when a policy node is there'),
    ('wait_for_recorder', bool, 'false', 'Begin only when the true chunks have a subscriber'),
    ('faults', str, '', 'Faults to inject'),
    ('seed', int, '0', 'Seed of drawn faults'),
    ('autostart', bool, 'true', 'Configure and activate at once'),
    ('exit_at_end', bool, 'true', 'End the process after the last step'),
)


def generate_launch_description() -> LaunchDescription:
    """Return what `ros2 launch` starts."""
    return describe_node('replay_node', ARGUMENTS)
