# SPDX-License-Identifier: Apache-2.0
"""One watched run: collects what a policy and a player say, and makes the verdict of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.dataset import Dataset
from vla_policy_ros.core.specs import Array
from vla_policy_ros.evaluation.frames import SampleFrame, take_sample_frames
from vla_policy_ros.evaluation.metrics import compare
from vla_policy_ros.evaluation.motion_metrics import ExecutorFacts, measure_motion
from vla_policy_ros.evaluation.motion_recording import MotionCollector, MotionRecording
from vla_policy_ros.evaluation.recording import ChunkRecording
from vla_policy_ros.evaluation.report import Recordings, write_reports
from vla_policy_ros.evaluation.timing import RunCounts, measure_timing
from vla_policy_ros.evaluation.verdict import RunFacts, Tolerances, Verdict, judge


class WatchedRun:
    """Everything heard during one run. One thread at a time."""

    def __init__(self) -> None:
        self.policy = ChunkRecording()
        self.truth = ChunkRecording()
        self.motion = MotionCollector()
        self._answered: set[int] = set()
        self._refusals: Counter[str] = Counter()
        self._drops: dict[str, int] = {}
        self._poses: dict[int, dict[str, float]] = {}

    @property
    def num_answered(self) -> int:
        """Reference samples that were answered, with a chunk or with a refusal."""
        return len(self._answered)

    def add_chunk(
        self, chunk: ActionChunk, *, publish_stamp_ns: int, receive_stamp_ns: int
    ) -> None:
        """Take one chunk of the policy."""
        self.policy.append(
            chunk, publish_stamp_ns=publish_stamp_ns, receive_stamp_ns=receive_stamp_ns
        )

    def add_truth(
        self, chunk: ActionChunk, *, publish_stamp_ns: int, receive_stamp_ns: int
    ) -> None:
        """Take one recorded chunk."""
        self.truth.append(
            chunk, publish_stamp_ns=publish_stamp_ns, receive_stamp_ns=receive_stamp_ns
        )

    def add_answer(self, stamp_ns: int, refusal: str = '') -> None:
        """Take what became of one reference sample; `refusal` is `stream/cause`, empty for a chunk."""
        self._answered.add(stamp_ns)
        if refusal:
            self._refusals[refusal] += 1

    def add_pose(self, stamp_ns: int, names: Sequence[str], positions: Sequence[float]) -> None:
        """Take the measured pose at one stamp."""
        self._poses[stamp_ns] = dict(zip(names, positions, strict=False))

    def set_drops(self, drops: Mapping[str, int]) -> None:
        """Take the number of messages lost so far, per stream."""
        self._drops = {name: count for name, count in drops.items() if count}

    def judge(
        self,
        run: RunFacts,
        *,
        num_sent: int | None,
        tolerances: Tolerances,
        execution_horizon: int | None = None,
        executed: tuple[MotionRecording, ExecutorFacts] | None = None,
    ) -> Verdict:
        """Compare, measure and hold the figures against the tolerances.

        Args:
            run: What was run.
            num_sent: Reference samples the player sent; None when it did not say.
            tolerances: Limits.
            execution_horizon: Rows executed of every chunk; None takes the distance from chunk to chunk.
            executed: The commands, and what their executor says; None for a run without an executor.
        """
        counts = RunCounts(
            reference_samples=num_sent,
            refusals=dict(self._refusals),
            missing=max(0, (num_sent or 0) - self.num_answered),
            drops=self._drops,
        )
        comparison = compare(
            self.policy,
            self.truth if len(self.truth) else None,
            execution_horizon=execution_horizon,
            held=self._held_poses(),
        )
        figures = None
        if executed is not None:
            motion, facts = executed
            figures = measure_motion(motion, self.policy, self.truth, executor=facts)
        return judge(
            run,
            comparison,
            timing=measure_timing(self.policy, counts),
            tolerances=tolerances,
            motion=figures,
        )

    def write(
        self,
        folder: Path,
        verdict: Verdict,
        *,
        dataset: Dataset | None,
        episode_index: int,
        motion: MotionRecording | None = None,
    ) -> Path:
        """Write the reports, with sample frames of the played episode; return the page's path."""
        frames: tuple[SampleFrame, ...] = ()
        if dataset is not None:
            episode = dataset.episode(episode_index)
            try:
                frames = take_sample_frames(dataset.info, episode)
            finally:
                episode.close()
        recordings = Recordings(self.policy, self.truth, motion)
        return write_reports(folder, verdict, recordings=recordings, sample_frames=frames)

    def _held_poses(self) -> Array | None:
        """Return the (N, D) measured pose per policy chunk, NaN where a column is not measured."""
        if not self._poses or not len(self.policy):
            return None
        names = [column.name for column in self.policy.columns]
        return np.array(
            [
                [self._poses.get(int(stamp), {}).get(name, np.nan) for name in names]
                for stamp in self.policy.observation_stamps_ns
            ],
            np.float32,
        )
