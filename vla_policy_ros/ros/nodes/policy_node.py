# SPDX-License-Identifier: Apache-2.0
"""Runs a policy: cameras, joint states and an instruction in, action chunks out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from rclpy.clock import Clock, ClockType
from std_srvs.srv import Trigger

from vla_policy_ros.bundle.manifest import Precision
from vla_policy_ros.bundle.strict import StrictModel
from vla_policy_ros.core.policy import Policy
from vla_policy_ros.deployment.config import (
    SAMPLE_BUNDLE,
    Deployment,
    LimitSettings,
    OptionalTopic,
    PolicySettings,
    default_deployment,
    load_deployment,
)
from vla_policy_ros.deployment.limits import load_limits
from vla_policy_ros.deployment.overrides import Overrides
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.execution.motion import commanded_columns
from vla_policy_ros.policies.checked_policy import CheckedPolicy
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.policies.registry import load_policy
from vla_policy_ros.ros.clock import NodeClock
from vla_policy_ros.ros.inputs import InputState, PolicyInputs
from vla_policy_ros.ros.lifecycle import ManagedNode
from vla_policy_ros.ros.outputs import PolicyOutputs
from vla_policy_ros.ros.parameters import NodeParameters, dynamic
from vla_policy_ros.ros.process import run_node
from vla_policy_ros.ros.robot_description import find_robot_description
from vla_policy_ros.runtime.outcome import Outcome
from vla_policy_ros.runtime.pipeline import PolicyPipeline
from vla_policy_ros.sample import sample_bundle_path

_POLL_PERIOD_S = 0.01
# Publishers come and go; a change is reported at once, the rest with the status period.
_FOLLOW_PERIOD_S = 0.2


class PolicyNodeParameters(StrictModel):
    """Parameters of the policy node; empty texts leave the deployment file's value."""

    config: str = ''
    """Deployment file (YAML) for robot and policy; empty: default topics of the bundle's cameras and joints."""
    bundle: str = ''
    """Folder of the policy bundle, or `sample` for the embedded one; wins over the deployment file."""
    engine: str = ''
    """Engine that runs the stages: onnxruntime, openvino, torch_cpu on the CPU; openvino_gpu, openvino_npu; tensorrt,
    tensorrt_rtx, onnxruntime_cuda, onnxruntime_tensorrt, torch, torch_compile, torch_tensorrt on an NVIDIA GPU;
    none for a policy that holds the pose."""
    preprocess: str = ''
    """Where images are preprocessed: cpu, or gpu with an engine on the GPU."""
    jpeg: Literal['', 'cpu', 'nvjpeg'] = ''
    """What decodes JPEG: cpu, or nvjpeg with preprocess gpu, which takes no PNG."""
    precision: Literal['', Precision] = ''
    """Precision that the engine runs in, where it chooses it."""
    plan_folder: str = ''
    """Folder of TensorRT plans."""
    cuda_graph: bool = True
    """Whether an engine on the GPU may run as one captured CUDA graph; false wins over the deployment file."""
    device: int = Field(default=-1, ge=-1, le=255)
    """Index of the GPU; -1 leaves the deployment file's value."""
    image_transport: Literal['', 'raw', 'compressed'] = ''
    """Transport of every camera; `compressed` appends /compressed to raw topics."""
    chunk_topic: OptionalTopic = ''
    """Topic of the action chunks."""
    instruction: str = dynamic('')
    """What the robot is told to do; a message on the instruction topic replaces it."""
    autostart: bool = False
    """Configure and activate at once, and end the process when that fails."""
    qos_depth: int = Field(default=10, ge=1, le=1000)
    """Messages that wait per topic while the process is busy."""
    status_period_s: float = Field(default=1.0, ge=0.05, le=60.0)
    """Seconds between two status messages."""
    description_timeout_s: float = Field(default=10.0, ge=0.0, le=600.0)
    """How long to wait for the robot description while configuring, in seconds."""


class PolicyNode(ManagedNode):
    """Managed node around a PolicyPipeline."""

    def __init__(self) -> None:
        super().__init__('policy_node')
        self._settings = NodeParameters(self, PolicyNodeParameters, self._on_parameters)
        self._policy: Policy | None = None
        self._checked: CheckedPolicy | None = None
        self._deployment: Deployment | None = None
        self._pipeline: PolicyPipeline | None = None
        self._inputs: PolicyInputs | None = None
        self._outputs: PolicyOutputs | None = None
        self._work_timers: list[Any] = []
        self._found: list[InputState] = []
        self._last_state = ''
        self.create_service(Trigger, '~/reset', self._on_reset)
        if self._settings.current.autostart:
            self.autostart()

    def configure(self) -> None:
        """Load the bundle, warm it up, prove it on its probe, and check the deployment against it."""
        parameters = self._settings.current
        given = load_deployment(Path(parameters.config)) if parameters.config else None
        bundle = parameters.bundle or (given.policy.bundle if given else SAMPLE_BUNDLE)
        folder = sample_bundle_path() if bundle == SAMPLE_BUNDLE else Path(bundle)
        overrides = Overrides.model_validate(
            parameters.model_dump(include=set(Overrides.model_fields))
        )
        settings = overrides.policy_settings(given.policy if given else None)
        self._policy = _load_policy(folder, settings)
        spec = self._policy.spec
        deployment = overrides.apply(given or default_deployment(spec, bundle=bundle))
        policy = self._policy
        if deployment.limits is not None:
            self._policy = self._checked = self._check_chunks(policy, deployment.limits)
        self._policy.warmup()
        # A policy that holds the pose runs no network.
        execution = str(policy.execution) if isinstance(policy, EnginePolicy) else ''
        self._deployment = deployment
        self._pipeline = PolicyPipeline(
            self._policy,
            deployment,
            clock=NodeClock(self),
            on_outcome=self._on_outcome,
        )
        self._outputs = PolicyOutputs(
            self, deployment=deployment, policy_id=spec.policy_id, execution=execution
        )
        self.get_logger().info(f'{spec.policy_id} loaded on {settings.engine} {execution}'.strip())

    def activate(self) -> None:
        """Start the pipeline and subscribe; every activation begins a new epoch."""
        assert self._deployment is not None
        assert self._pipeline is not None
        self._pipeline.start()
        parameters = self._settings.current
        self._inputs = PolicyInputs(
            self,
            deployment=self._deployment,
            pipeline=self._pipeline,
            depth=parameters.qos_depth,
            on_instruction=self._report,
        )
        wall = Clock(clock_type=ClockType.STEADY_TIME)
        self._work_timers = [
            self.create_timer(_POLL_PERIOD_S, self._pipeline.poll, clock=wall),
            self.create_timer(_FOLLOW_PERIOD_S, self._follow, clock=wall),
            self.create_timer(parameters.status_period_s, self._report, clock=wall),
        ]
        self._follow()

    def deactivate(self) -> None:
        """Unsubscribe, then stop the pipeline; what is still queued is refused as stopped."""
        for timer in self._work_timers:
            self.destroy_timer(timer)
        self._work_timers = []
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None
            self._found = []
        if self._pipeline is not None:
            if not self._pipeline.stop():
                self.get_logger().error(
                    'the policy is still busy; it cannot be activated again before it has ended'
                )
            self._report()

    def release(self) -> None:
        """Stop, and free the policy."""
        self.deactivate()
        self._pipeline = None
        if self._outputs is not None:
            self._outputs.close()
            self._outputs = None
        if self._policy is not None:
            self._policy.close()
            self._policy = self._checked = None

    def _check_chunks(self, policy: Policy, settings: LimitSettings) -> CheckedPolicy:
        """Put the policy behind the limits of its joints."""
        text = find_robot_description(self, settings, self._settings.current.description_timeout_s)
        columns = commanded_columns(policy.spec.action.columns)
        limits = load_limits(settings, columns, robot_description=text)
        return CheckedPolicy(policy, limits, settings.mode)

    def _on_outcome(self, outcome: Outcome) -> None:
        if self._outputs is not None:
            self._outputs.publish_outcome(outcome)
        if outcome.chunk is None:
            self.get_logger().warning(
                f'no chunk for {outcome.stamp_ns} ns: {outcome.stream}: {outcome.cause}: '
                f'{outcome.detail}',
                throttle_duration_sec=2.0,
            )

    def _follow(self) -> None:
        if self._inputs is not None:
            found = self._inputs.follow()
            if found != self._found:
                self._found = found
                self._report()

    def _report(self) -> None:
        if self._pipeline is None or self._outputs is None:
            return
        snapshot = self._pipeline.snapshot()
        mended = {} if self._checked is None else self._checked.mended
        self._outputs.publish_status(snapshot, self._found, mended=mended)
        if snapshot.state != self._last_state:
            self._last_state = snapshot.state
            say = self.get_logger().error if snapshot.state == 'failed' else self.get_logger().info
            say(f'{snapshot.state} {snapshot.detail}'.strip())

    def _on_parameters(self, parameters: PolicyNodeParameters) -> None:
        if self._pipeline is not None:
            self._pipeline.set_instruction(parameters.instruction)
            self._report()

    def _on_reset(self, _request: Any, response: Any) -> Any:
        response.success = self._inputs is not None and self._pipeline is not None
        response.message = 'reset' if response.success else 'the node is not active'
        if self._pipeline is not None:
            self._pipeline.reset('service')
        return response


def _load_policy(folder: Path, settings: PolicySettings) -> Policy:
    return load_policy(
        folder,
        engine=settings.engine,
        preprocess=settings.preprocess,
        slots=settings.slots,
        settings=EngineSettings(
            threads=settings.threads,
            precision=settings.precision or None,
            plan_folder=Path(settings.plan_folder) if settings.plan_folder else None,
        ),
        cuda_graph=settings.cuda_graph,
        jpeg=settings.jpeg,
        device=settings.device,
        rtc=settings.rtc,
    )


def main() -> int:
    """Run the policy node."""
    return run_node(PolicyNode)


if __name__ == '__main__':
    sys.exit(main())
