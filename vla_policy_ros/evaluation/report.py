# SPDX-License-Identifier: Apache-2.0
"""The reports of a run: report.json for programs, report.xml for CI, report.html for people.

The folder also keeps both chunk streams and the sample frames, so that the page can be made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.evaluation.frames import EncodedFrame, SampleFrame, encode_png, shrink
from vla_policy_ros.evaluation.html import render_html
from vla_policy_ros.evaluation.junit import render_junit
from vla_policy_ros.evaluation.motion_recording import MotionRecording
from vla_policy_ros.evaluation.recording import ChunkRecording
from vla_policy_ros.evaluation.verdict import Verdict

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Recordings:
    """The chunk streams of a run; the truth is empty when nothing was recorded, the motion None without an executor."""

    policy: ChunkRecording
    truth: ChunkRecording = field(default_factory=ChunkRecording)
    motion: MotionRecording | None = None


@dataclass(frozen=True, slots=True)
class FrameFile:
    """Where a sample frame lies, relative to the run's folder."""

    camera: str
    stamp_ns: int
    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The content of report.json.

    Attributes:
        schema_version: Version of this layout.
        passed: Whether the run passed.
        policy_digest: SHA-256 of policy/chunks.npz.
        verdict: Everything measured, and the checks.
        frames: The sample frames.
    """

    schema_version: int
    passed: bool
    policy_digest: str
    verdict: Verdict
    frames: tuple[FrameFile, ...] = ()


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """What the folder of a run holds."""

    report: Report
    recordings: Recordings
    frames: tuple[EncodedFrame, ...]


def write_reports(
    folder: str | Path,
    verdict: Verdict,
    *,
    recordings: Recordings,
    sample_frames: Sequence[SampleFrame] = (),
) -> Path:
    """Write report.json, report.xml and report.html with all they need into a folder; return the page's path.

    Args:
        folder: Folder of the run; made when it is missing.
        verdict: The verdict.
        recordings: The chunk streams.
        sample_frames: Images to show; larger ones are shrunk.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    recordings.policy.save(folder / 'policy')
    recordings.truth.save(folder / 'truth')
    if recordings.motion is not None:
        recordings.motion.save(folder / 'motion')
    report = Report(
        schema_version=SCHEMA_VERSION,
        passed=verdict.passed,
        policy_digest=recordings.policy.digest(),
        verdict=verdict,
        frames=_write_frames(folder, sample_frames),
    )
    (folder / 'report.json').write_bytes(TypeAdapter(Report).dump_json(report, indent=2) + b'\n')
    (folder / 'report.xml').write_text(render_junit(verdict), encoding='utf-8')
    return render_report(folder)


def render_report(folder: str | Path) -> Path:
    """Make report.html from the other files of a finished run; return its path.

    Raises:
        DatasetError: The folder does not hold a finished run.
    """
    run = load_run(folder)
    page = render_html(
        run.report.verdict,
        policy=run.recordings.policy,
        truth=run.recordings.truth,
        frames=run.frames,
        motion=run.recordings.motion,
    )
    path = Path(folder) / 'report.html'
    path.write_text(page, encoding='utf-8')
    return path


def load_run(folder: str | Path) -> FinishedRun:
    """Read a finished run.

    Raises:
        DatasetError: A file is missing, broken, or of another version.
    """
    folder = Path(folder)
    report = _read_report(folder / 'report.json')
    return FinishedRun(
        report=report,
        recordings=Recordings(
            ChunkRecording.load(folder / 'policy'),
            ChunkRecording.load(folder / 'truth'),
            MotionRecording.load(folder / 'motion') if report.verdict.motion else None,
        ),
        frames=tuple(
            EncodedFrame(frame.camera, frame.stamp_ns, _read_file(_frame_path(folder, frame)))
            for frame in report.frames
        ),
    )


def _read_report(path: Path) -> Report:
    try:
        report = TypeAdapter(Report).validate_json(_read_file(path))
    except ValidationError as fault:
        first = fault.errors(include_url=False)[0]
        raise DatasetError(
            f'{path}: {".".join(map(str, first["loc"]))}',
            got=first['msg'],
            expected=f'a report of schema version {SCHEMA_VERSION}',
            next_step='Run the evaluation again.',
            code='broken_file',
        ) from fault
    if report.schema_version != SCHEMA_VERSION:
        raise DatasetError(
            str(path),
            got=f'schema version {report.schema_version}',
            expected=f'schema version {SCHEMA_VERSION}',
            next_step='Run the evaluation again.',
            code='wrong_version',
        )
    return report


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as fault:
        raise DatasetError(
            str(path),
            got=fault.strerror or 'an unreadable file',
            expected='the file of a finished run',
            next_step='Give the folder that the run wrote its reports to.',
            code='missing_file',
        ) from fault


def _frame_path(folder: Path, frame: FrameFile) -> Path:
    """Return a frame's path; whatever the report says, it lies in the run's own folder."""
    return folder / 'frames' / Path(frame.file).name


def _write_frames(folder: Path, frames: Sequence[SampleFrame]) -> tuple[FrameFile, ...]:
    if frames:
        (folder / 'frames').mkdir(exist_ok=True)
    files = []
    for number, frame in enumerate(frames):
        file = f'frames/{number:02d}.png'
        (folder / file).write_bytes(encode_png(shrink(frame.image)))
        files.append(FrameFile(frame.camera, frame.stamp_ns, file))
    return tuple(files)
