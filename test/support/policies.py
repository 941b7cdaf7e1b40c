# SPDX-License-Identifier: Apache-2.0
"""A policy without a network, whose every call can be held back, counted and made to fail."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.errors import GpuError, ImageError
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.specs import (
    ActionSpec,
    CameraSpec,
    Column,
    ObservationSpec,
    PolicySpec,
)

PATIENCE_S = 10.0
"""How long a test waits for another thread before it fails; no test waits that long when all is well."""


def gpu_error(code: str) -> GpuError:
    """Return an error of the GPU."""
    return GpuError('GPU', got='a fault', expected='none', next_step='Look at it.', code=code)


def make_spec(
    cameras: Mapping[str, tuple[int, ...]] | Sequence[str] = ('front',),
    state: Sequence[str | Column] = ('shoulder', 'elbow'),
    *,
    state_history_ns: tuple[int, ...] = (0,),
    needs_instruction: bool = False,
) -> PolicySpec:
    """Return a spec; `cameras` may map names to histories."""
    histories = cameras if isinstance(cameras, Mapping) else dict.fromkeys(cameras, (0,))
    columns = tuple(Column(name, 'rad') if isinstance(name, str) else name for name in state)
    return PolicySpec(
        policy_id='fake@0',
        observation=ObservationSpec(
            cameras=tuple(CameraSpec(name, history) for name, history in histories.items()),
            state=columns,
            state_history_ns=state_history_ns,
            needs_instruction=needs_instruction,
        ),
        action=ActionSpec(columns=(Column('gripper', 'm'),), horizon=2, step_ns=10),
    )


class Gate:
    """Lets callers through while it is open; `wait_for(n)` returns when n callers stand at it or went through."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_open = True
        self._arrived = 0

    @property
    def num_arrived(self) -> int:
        """Callers so far."""
        return self._arrived

    @property
    def is_open(self) -> bool:
        """Whether callers pass."""
        return self._is_open

    def close(self) -> None:
        """Hold callers back."""
        self._is_open = False

    def open(self) -> None:
        """Let all callers through."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def enter(self) -> None:
        """Stand at the gate until it is open."""
        with self._changed:
            self._arrived += 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._is_open, PATIENCE_S)

    def wait_for(self, count: int) -> None:
        """Wait for callers."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._arrived >= count, PATIENCE_S)


@dataclass(frozen=True, eq=False)
class FakePrepared:
    """A frame that went through `prepare`; `brightness` is the frame's first byte."""

    camera: str
    stamp_ns: int
    brightness: int


class FakePolicy:
    """Adds up state and images: row k of a chunk is their sum plus k.

    It keeps observations without their images (`observations`), camera and stamp of the images (`used`), and how many
    prepared images of a camera were alive at most (`most_in_use`).
    """

    def __init__(self, spec: PolicySpec | None = None) -> None:
        self.spec = spec or make_spec()
        self.prepare_gate = Gate()
        self.infer_gate = Gate()
        self.observations: list[Observation] = []
        self.used: list[list[tuple[str, int]]] = []
        self.num_resets = 0
        self.most_in_use: Counter[str] = Counter()
        self._in_use: weakref.WeakSet[FakePrepared] = weakref.WeakSet()
        self._lock = threading.Lock()
        self.is_swift = False
        self.prepare_error: Exception | None = None
        self.infer_error: Exception | None = None

    def prepares_at_once(self, frame: Frame) -> bool:
        """Tell what `is_swift` says."""
        return self.is_swift

    def prepare(self, frame: Frame) -> FakePrepared:
        """Refuse an empty frame as a truncated one."""
        self.prepare_gate.enter()
        if self.prepare_error is not None:
            raise self.prepare_error
        if not frame.data.size:
            raise ImageError(
                f'camera {frame.camera!r}',
                got='0 bytes',
                expected='an image',
                next_step='Check the driver.',
                code='truncated_jpeg',
            )
        prepared = FakePrepared(frame.camera, frame.stamp_ns, int(frame.data[0]))
        with self._lock:
            self._in_use.add(prepared)
            in_use = sum(other.camera == frame.camera for other in self._in_use)
            self.most_in_use[frame.camera] = max(self.most_in_use[frame.camera], in_use)
        return prepared

    def warmup(self) -> None:
        """Nothing to warm up."""

    def infer(self, observation: Observation) -> ActionChunk:
        """Note the observation; raise `infer_error` when there is one."""
        self.infer_gate.enter()
        self.observations.append(replace(observation, images={}))
        if self.infer_error is not None:
            raise self.infer_error
        images = [image for history in observation.images.values() for image in history]
        self.used.append([(image.camera, image.stamp_ns) for image in images])
        total = observation.state.sum() + sum(image.brightness for image in images)
        return ActionChunk(
            actions=np.array([[total], [total + 1]], np.float32),
            columns=self.spec.action.columns,
            step_ns=self.spec.action.step_ns,
            start_ns=observation.stamp_ns,
            observation_stamp_ns=observation.stamp_ns,
            stream_ages_ns=observation.stream_ages_ns(),
            stage_latencies_ns={'network': 5},
        )

    def reset(self) -> None:
        """Count resets."""
        self.num_resets += 1

    def close(self) -> None:
        """Nothing to free."""


def make_frame(camera: str, stamp_ns: int, brightness: int = 1) -> Frame:
    """Return a tiny image of one brightness."""
    return Frame.from_rgb(camera, stamp_ns, np.full((2, 2, 3), brightness, np.uint8))


def truncated_frame(camera: str, stamp_ns: int) -> Frame:
    """Return a frame that `FakePolicy.prepare` refuses."""
    return Frame(camera, stamp_ns, 'jpeg', 0, 0, 0, np.empty(0, np.uint8))
