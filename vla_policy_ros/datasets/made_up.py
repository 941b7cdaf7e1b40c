# SPDX-License-Identifier: Apache-2.0
"""A recording that nobody made: a YAML file says what a robot's data looks like, and the numbers and pictures are drawn.

With it a whole configuration runs, from cameras to controllers, before there is a recording of the robot.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from vla_policy_ros.bundle.strict import StrictModel, parse_file
from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.specs import Column, ColumnKind
from vla_policy_ros.datasets.synthetic import SyntheticColumn, SyntheticDataset

_Number = Annotated[float, Field(allow_inf_nan=False)]


class _Camera(StrictModel):
    height: int = Field(ge=16, le=4096)
    width: int = Field(ge=32, le=4096)


class _MadeUpColumn(StrictModel):
    name: str = Field(min_length=1)
    unit: str = ''
    kind: Literal['linear', 'angle', 'gripper', 'twist'] = 'linear'
    low: _Number
    high: _Number
    measured: bool = True

    @model_validator(mode='after')
    def _check(self) -> Self:
        if self.low >= self.high:
            raise ValueError('low below high')
        return self

    def synthetic(self) -> SyntheticColumn:
        """Return it as a column of a synthetic dataset."""
        return SyntheticColumn(
            column=Column(self.name, self.unit, ColumnKind(self.kind)),
            low=self.low,
            high=self.high,
            is_measured=self.measured,
        )


class _MadeUpRecording(StrictModel):
    schema_version: Literal[1] = 1
    rate_hz: float = Field(gt=0, le=1000)
    num_episodes: int = Field(default=1, ge=1, le=1000)
    num_steps: int = Field(default=100, ge=1, le=65536)
    cameras: dict[str, _Camera] = Field(default_factory=dict)
    columns: tuple[_MadeUpColumn, ...] = Field(min_length=1)


def open_made_up(path: str | Path) -> SyntheticDataset:
    """Open the description of a made-up recording; it is called after its folder.

    `columns` are those of the action; the state has those with `measured: true`, which is the default. Values swing
    between `low` and `high`. Rotations cannot be made up.

    Raises:
        DatasetError: The file is not YAML, or a key is unknown, missing or has a wrong value.
    """
    path = Path(path)
    recording = parse_file(_MadeUpRecording, path, DatasetError)
    return SyntheticDataset(
        num_episodes=recording.num_episodes,
        num_steps=recording.num_steps,
        step_ns=round(1e9 / recording.rate_hz),
        cameras={name: (one.height, one.width) for name, one in recording.cameras.items()},
        columns=[column.synthetic() for column in recording.columns],
        name=path.absolute().parent.name,
    )
