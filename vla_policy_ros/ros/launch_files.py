# SPDX-License-Identifier: Apache-2.0
"""What the files in launch/ are made of: arguments told once, a node with all of them as its parameters, other files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

_PACKAGE = 'vla_policy_ros'
Argument: TypeAlias = tuple[str, Any, str, str]
"""Name, type, default as text, description."""


def declare(arguments: Iterable[Argument]) -> list[DeclareLaunchArgument]:
    """Return the declarations of arguments, as `ros2 launch -s` shows them."""
    return [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, _, default, description in arguments
    ]


def describe_node(executable: str, arguments: Iterable[Argument]) -> LaunchDescription:
    """Return a launch file's description: one managed node, every argument a parameter of it, and `namespace`.

    Args:
        executable: Name of the executable, which the node also bears.
        arguments: The arguments; the type of each is that of the parameter.
    """
    arguments = tuple(arguments)
    parameters = {
        name: ParameterValue(LaunchConfiguration(name), value_type=kind)
        for name, kind, _, _ in arguments
    }
    return LaunchDescription(
        [
            *declare(arguments),
            DeclareLaunchArgument('namespace', default_value='', description='Node namespace'),
            make_node(executable, parameters, namespace=LaunchConfiguration('namespace')),
        ]
    )


def make_node(
    executable: str, parameters: dict[str, Any], *, namespace: Any = '', **words: Any
) -> LifecycleNode:
    """Return the action that starts one of this package's managed nodes; `words` are passed on to it."""
    return LifecycleNode(
        package=_PACKAGE,
        executable=executable,
        name=executable,
        namespace=namespace,
        output='screen',
        parameters=[parameters],
        **words,
    )


def include(name: str, *, condition: Any = None, **arguments: object) -> IncludeLaunchDescription:
    """Return the action that starts another launch file of this package with arguments."""
    path = PathJoinSubstitution([FindPackageShare(_PACKAGE), 'launch', name])
    return IncludeLaunchDescription(
        PythonLaunchDescriptionSource(path),
        launch_arguments=arguments.items(),
        condition=condition,
    )
