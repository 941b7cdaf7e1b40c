# SPDX-License-Identifier: Apache-2.0
"""Robot and policy in one YAML file: which topics feed the policy, how they are matched, where its chunks go."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from vla_policy_ros.bundle.manifest import Precision
from vla_policy_ros.bundle.strict import StrictModel, find_file_faults, parse, parse_file
from vla_policy_ros.core.errors import ConfigurationError, VlaPolicyError
from vla_policy_ros.core.specs import PolicySpec
from vla_policy_ros.deployment.checks import JOINT_STATES, find_mismatches
from vla_policy_ros.deployment.rtc import RtcSettings

SAMPLE_BUNDLE = 'sample'
_SPARE_SLOTS = 4

Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_TOPIC = r'(~/|/)?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*'
Topic = Annotated[str, Field(pattern=rf'^{_TOPIC}$')]
OptionalTopic = Annotated[str, Field(pattern=rf'^({_TOPIC})?$')]


def to_ns(duration_ms: float) -> int:
    """Convert milliseconds to whole nanoseconds."""
    return round(duration_ms * 1e6)


def resolve_path(path: str, folder: Path) -> str:
    """Return a path of a file made absolute; it is relative to the folder of that file, and may begin with ~."""
    return str((folder / Path(path).expanduser()).resolve())


class PolicySettings(StrictModel):
    """Which policy runs, and how."""

    bundle: str = Field(min_length=1)
    """Folder of the policy bundle, relative to this file; `sample` is the bundle that comes with the package."""
    engine: str = 'onnxruntime'
    """Engine that runs the stages: onnxruntime, openvino, torch_cpu on the CPU; openvino_gpu, openvino_npu; tensorrt,
    tensorrt_rtx, onnxruntime_cuda, onnxruntime_tensorrt, torch, torch_compile, torch_tensorrt on an NVIDIA GPU;
    none holds the pose."""
    preprocess: str = 'cpu'
    """Where images are preprocessed: `cpu`, or `gpu` with an engine on the GPU."""
    jpeg: Literal['cpu', 'nvjpeg'] = 'cpu'
    """What decodes JPEG: `cpu`, or `nvjpeg` on the GPU, which takes no PNG and needs `preprocess: gpu`."""
    precision: Literal['', Precision] = ''
    """Precision that the engine runs in, where it chooses it; empty: as the bundle says."""
    plan_folder: str = ''
    """Folder of TensorRT plans, relative to this file; empty: the engine's own place."""
    cuda_graph: bool = True
    """Whether an engine on the GPU runs stages and loop as one captured CUDA graph."""
    device: int = Field(default=0, ge=0)
    """Index of the GPU."""
    threads: int = Field(default=0, ge=0)
    """Threads of the engine; 0 lets the engine choose."""
    slots: int = Field(default=16, ge=2)
    """Preprocessed images held per camera: history, sets that wait, and the one in work; at least `queue` + 4."""
    trigger: Literal['every_set', 'newest'] = 'every_set'
    """`every_set` queues every matched set, `newest` keeps the latest one only; what falls out is `superseded`."""
    queue: int = Field(default=8, ge=1)
    """Matched sets that wait for the policy (`every_set`); also images per camera that wait for preprocessing."""
    rtc: RtcSettings | None = None
    """Real-time chunking: chunks that begin with what is left of the one before; empty: every chunk is by itself."""

    @model_validator(mode='after')
    def _check(self) -> Self:
        if self.slots < self.queue + _SPARE_SLOTS:
            raise ValueError(
                f'at least {self.queue + _SPARE_SLOTS} slots for a queue of {self.queue}'
            )
        return self

    @property
    def max_waiting(self) -> int:
        """Matched sets that may wait for the policy."""
        return 1 if self.trigger == 'newest' else self.queue


class CameraSource(StrictModel):
    """One camera of the policy and the topic that feeds it."""

    topic: Topic
    """Image topic; the full name of the compressed topic when `transport` is `compressed`."""
    transport: Literal['raw', 'compressed'] = 'raw'
    """`raw` is sensor_msgs/Image, `compressed` sensor_msgs/CompressedImage (JPEG or PNG)."""
    match: Literal['nearest', 'as_of'] = 'nearest'
    """Which image belongs to a reference stamp: the nearest one, or the newest one that is not later."""
    tolerance_ms: Milliseconds = 20.0
    """Largest distance of the image to the wanted stamp, in milliseconds (`nearest`)."""
    max_age_ms: Milliseconds = 100.0
    """Largest age of the image at the wanted stamp, in milliseconds."""
    fill: Literal['refuse', 'last', 'black'] = 'refuse'
    """What stands in for an image that is not there: nothing, the last image, or a black one; fills are counted."""
    rate_hz: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Nominal rate in hertz. It counts lost images (empty: learnt from the stamps), and no set waits for an image that
    cannot fit better than the one that is there."""


class JointSource(StrictModel):
    """One topic of joint states and the joints it gives."""

    topic: Topic
    """Topic of sensor_msgs/JointState."""
    names: tuple[str, ...] = ()
    """Joints of the policy's state that this source gives, under the policy's names; empty: all of them."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Name in the message to name in the policy, for joints that are called differently."""
    match: Literal['nearest', 'as_of', 'interpolate'] = 'interpolate'
    """Which state belongs to a reference stamp: the nearest, the newest not later, or the blend of both neighbours."""
    tolerance_ms: Milliseconds = 50.0
    """Largest distance of a sample to the wanted stamp, in milliseconds (`nearest`, `interpolate`)."""
    max_age_ms: Milliseconds = 100.0
    """Largest age of a sample at the wanted stamp, in milliseconds."""
    rate_hz: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Nominal rate in hertz: with `nearest` and `as_of` no set waits then for a sample that cannot fit better than the one
    that is there."""


class InstructionSource(StrictModel):
    """What the robot is told to do."""

    text: str = ''
    """Instruction at the start."""
    topic: OptionalTopic = 'instruction'
    """Topic of std_msgs/String that replaces the instruction; empty: none."""


class Matching(StrictModel):
    """How streams are matched on stamps."""

    reference: str = ''
    """Stream that triggers the policy: a camera's name, or `joint_states` for the first joint source; empty: the
    policy's first camera."""
    patience_ms: Milliseconds = 200.0
    """How long after its arrival a reference sample waits for the other streams, in milliseconds; it waits only while a
    stream has no sample at or past that stamp."""
    time_source: Literal['header', 'receive'] = 'header'
    """`header`: capture stamps of the messages; `receive`: the node's time of receipt, for drivers that do not stamp."""
    time_jump_ms: float = Field(default=1000.0, gt=0, allow_inf_nan=False)
    """A reference stamp this much before the last one (a bag that loops) resets the policy, in milliseconds."""


class Output(StrictModel):
    """Where chunks go."""

    chunk_topic: Topic = 'action_chunk'
    """Topic of vla_policy_ros/ActionChunk."""


class LimitSettings(StrictModel):
    """Where the limits of the joints come from, and what is done when a chunk breaks one."""

    urdf_topic: OptionalTopic = 'robot_description'
    """Topic of std_msgs/String with the URDF; empty: none. `urdf_file` comes first."""
    urdf_file: str = ''
    """URDF file, relative to this file; empty: none."""
    file: str = ''
    """Limits file with the keys of MoveIt's joint_limits.yaml, relative to this file; the tighter limit counts."""
    mode: Literal['clamp', 'reject', 'stretch'] = 'clamp'
    """`clamp` bends what breaks a limit, `reject` refuses such a chunk, `stretch` slows the motion down."""

    @property
    def needs_robot_description(self) -> bool:
        """Whether the URDF comes from the topic."""
        return bool(self.urdf_topic) and not self.urdf_file

    def resolved(self, folder: Path) -> Self:
        """Return these settings with paths relative to a folder made absolute."""
        given = {'urdf_file': self.urdf_file, 'file': self.file}
        return self.model_copy(
            update={key: resolve_path(path, folder) for key, path in given.items() if path}
        )


class Deployment(StrictModel):
    """One robot with one policy: the whole of a deployment file."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    policy: PolicySettings
    """Which policy runs, and how."""
    cameras: dict[str, CameraSource] = Field(default_factory=dict)
    """The policy's camera names and what feeds them."""
    joint_states: tuple[JointSource, ...] = ()
    """Topics that together give every joint of the policy's state exactly once."""
    instruction: InstructionSource = InstructionSource()
    """What the robot is told to do."""
    matching: Matching = Matching()
    """How streams are matched on stamps."""
    output: Output = Output()
    """Where chunks go."""
    limits: LimitSettings | None = None
    """Limits that every chunk is checked against before it goes out; null: only that its numbers are finite."""

    @property
    def joint_streams(self) -> tuple[str, ...]:
        """Names of the joint streams: `joint_states[0]` and so on, in the order of `joint_states`."""
        return tuple(f'{JOINT_STATES}[{index}]' for index in range(len(self.joint_states)))

    def reference_stream(self, spec: PolicySpec) -> str:
        """Return the name of the reference stream."""
        cameras = [camera.name for camera in spec.observation.cameras]
        reference = self.matching.reference or (cameras or [JOINT_STATES])[0]
        return self.joint_streams[0] if reference == JOINT_STATES else reference


def topic_part(name: str) -> str:
    """Return a camera's name as part of a topic: letters, digits and `_`, no part of it begins with a digit."""
    parts = [re.sub('[^A-Za-z0-9_]', '_', part) for part in name.split('/')]
    return '/'.join(part if re.match('[A-Za-z_]', part) else f'_{part}' for part in parts)


def default_deployment(spec: PolicySpec, *, bundle: str) -> Deployment:
    """Return a deployment with the usual topics: `/camera/<name>/image_raw` and `/joint_states`."""
    document: dict[str, Any] = {
        'policy': {'bundle': bundle},
        'cameras': {
            camera.name: {'topic': f'/camera/{topic_part(camera.name)}/image_raw'}
            for camera in spec.observation.cameras
        },
        'joint_states': [{'topic': '/joint_states'}] if spec.observation.state else [],
    }
    return parse(Deployment, document, 'default deployment', ConfigurationError)


def load_deployment(path: str | Path) -> Deployment:
    """Read a deployment file; relative paths in it are resolved against its folder.

    Raises:
        ConfigurationError: The file is missing or not YAML, or a key is unknown, missing or has a wrong value.
    """
    path = Path(path)
    return _resolve(parse_file(Deployment, path, ConfigurationError), path.parent)


def find_deployment_faults(path: str | Path) -> list[VlaPolicyError]:
    """Return every fault of a deployment file that can be told without the policy."""
    return find_file_faults(Deployment, Path(path), ConfigurationError)


def check_deployment(deployment: Deployment, spec: PolicySpec) -> list[VlaPolicyError]:
    """Return every place where a deployment does not fit the policy."""
    sources: Mapping[str, tuple[str, ...]] = {
        f'{stream} ({source.topic})': source.names
        for stream, source in zip(deployment.joint_streams, deployment.joint_states, strict=True)
    }
    return find_mismatches(
        spec.observation,
        cameras=tuple(deployment.cameras),
        joint_sources=sources,
        renames={
            f'{stream}.rename': tuple(source.rename.values())
            for stream, source in zip(
                deployment.joint_streams, deployment.joint_states, strict=True
            )
        },
        reference=deployment.matching.reference,
    )


def _resolve(deployment: Deployment, folder: Path) -> Deployment:
    policy = deployment.policy
    resolved = (
        {'plan_folder': resolve_path(policy.plan_folder, folder)} if policy.plan_folder else {}
    )
    if policy.bundle != SAMPLE_BUNDLE:
        resolved['bundle'] = resolve_path(policy.bundle, folder)
    update: dict[str, Any] = {'policy': policy.model_copy(update=resolved)}
    if deployment.limits is not None:
        update['limits'] = deployment.limits.resolved(folder)
    return deployment.model_copy(update=update)
