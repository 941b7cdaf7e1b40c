# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import onnx
import pytest

from vla_policy_ros.bundle.bundle import find_bundle_faults, load_bundle
from vla_policy_ros.bundle.probe import check_probe
from vla_policy_ros.core.dataset import DatasetInfo
from vla_policy_ros.core.errors import BundleError, DatasetError
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.core.observation import Instruction, Observation
from vla_policy_ros.core.specs import Column, ColumnKind
from vla_policy_ros.datasets.synthetic import SyntheticDataset
from vla_policy_ros.export.untrained import create_untrained_bundle
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.policies.registry import load_policy


class Altered:
    """A dataset with parts of another one taken away or renamed."""

    def __init__(self, dataset, *, state=True, action=True, texts=None, info=None):
        self._dataset, self._state, self._action, self._texts = dataset, state, action, texts
        changes = dict(info or {})
        if not state:
            changes['state'] = ()
        if not action:
            changes['action'] = ()
        self.info = replace(dataset.info, **changes)

    def episode(self, index):
        return AlteredEpisode(self._dataset.episode(index), self._state, self._action, self._texts)

    def close(self):
        self._dataset.close()


class AlteredEpisode:
    def __init__(self, episode, state, action, texts):
        self._episode = episode
        self.stamps_ns = episode.stamps_ns
        self.state = episode.state if state else episode.state[:, :0]
        self.action = episode.action if action else episode.action[:, :0]
        self.instructions = texts or episode.instructions

    def images(self, camera, start=0, stop=None):
        return self._episode.images(camera, start, stop)

    def close(self):
        self._episode.close()


def make_dataset(num_cameras=1, **settings):
    cameras = {f'camera_{index}': (48, 64) for index in range(num_cameras)}
    return SyntheticDataset(
        num_episodes=2, num_steps=12, cameras=cameras, num_joints=3, **settings
    )


def observe(bundle, dataset, step, text=None):
    episode = dataset.episode(0)
    stamp_ns = int(episode.stamps_ns[step])
    return Observation(
        images={
            camera.name: tuple(
                Frame.from_rgb(camera.name, stamp_ns, image.copy())
                for image in episode.images(camera.name, step, step + 1)
            )
            for camera in bundle.spec.observation.cameras
        },
        state=np.array(episode.state[step : step + 1], np.float32),
        instruction=Instruction(episode.instructions[step] if text is None else text),
        stamp_ns=stamp_ns,
    )


def test_bundle_has_the_shapes_of_the_dataset_and_passes_every_check(tmp_path):
    dataset = make_dataset(num_cameras=2)
    bundle = create_untrained_bundle(
        tmp_path / 'new' / 'bundle', dataset, horizon=5, image_size=32
    )
    assert find_bundle_faults(bundle.folder) == []
    observation, action = bundle.spec.observation, bundle.spec.action
    assert [camera.name for camera in observation.cameras] == ['camera_0', 'camera_1']
    assert observation.state == dataset.info.state
    assert action.columns == dataset.info.action
    assert (action.horizon, action.step_ns) == (5, dataset.info.step_ns)
    assert bundle.tensors['image_1'].shape == (1, 3, 32, 32)
    policy = load_policy(bundle.folder)  # runs the probe
    assert check_probe(policy, bundle).max_error == 0
    policy.close()


def test_actions_are_smooth_and_stay_within_the_recorded_range(tmp_path):
    dataset = make_dataset()
    bundle = create_untrained_bundle(tmp_path, dataset)
    policy = EnginePolicy(bundle)
    recorded = np.concatenate([dataset.episode(index).action for index in range(2)])
    low, high = recorded.min(0) - 1e-5, recorded.max(0) + 1e-5
    for step in (0, 6, 11):
        actions = policy.infer(observe(bundle, dataset, step)).actions
        assert ((actions >= low) & (actions <= high)).all()
        assert np.ptp(actions, axis=0).max() > 0
        assert (np.abs(np.diff(actions, axis=0)) <= (high - low) / 2).all()


def test_every_input_counts(tmp_path):
    texts = ['pick the cube', 'open the drawer'] * 6
    dataset = Altered(make_dataset(), texts=texts)
    bundle = create_untrained_bundle(tmp_path, dataset)
    policy = EnginePolicy(bundle)
    first = observe(bundle, dataset, 0)
    other = observe(bundle, dataset, 6)
    base = policy.infer(first).actions
    for change in (
        {'images': other.images},
        {'state': other.state + 0.1},
        {'instruction': Instruction('open the drawer')},
    ):
        assert np.abs(policy.infer(replace(first, **change)).actions - base).max() > 1e-6, change


def test_the_same_seed_gives_the_same_bundle(tmp_path):
    hashes = [
        create_untrained_bundle(tmp_path / name, make_dataset(), seed=seed).content_hash
        for name, seed in (('a', 0), ('b', 0), ('c', 1))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ('state', 'action', 'num_cameras'),
    [(True, False, 1), (False, True, 1), (False, True, 0), (True, True, 0)],
    ids=['no action', 'no state', 'nothing but action', 'no camera'],
)
def test_what_was_not_recorded_is_left_out(tmp_path, state, action, num_cameras):
    dataset = Altered(make_dataset(num_cameras), state=state, action=action)
    bundle = create_untrained_bundle(tmp_path, dataset)
    assert bundle.spec.observation.state == dataset.info.state
    assert bundle.spec.action.columns == (dataset.info.action or dataset.info.state)
    policy = EnginePolicy(bundle)
    policy.warmup()
    observation = observe(bundle, dataset, 3)
    assert policy.infer(observation).actions.shape == (16, 3)


@pytest.mark.parametrize(
    ('texts', 'needs', 'has_words'),
    [
        ([''] * 12, False, False),
        (['Pick it', *[''] * 11], False, True),
        (['Pick it'] * 12, True, True),
    ],
)
def test_words_are_an_input_where_they_were_recorded(tmp_path, texts, needs, has_words):
    dataset = Altered(make_dataset(), texts=texts)
    bundle = create_untrained_bundle(tmp_path, dataset)
    assert bundle.spec.observation.needs_instruction == needs
    assert (bundle.manifest.instruction is not None) == has_words
    assert (tmp_path / 'tokenizer.json').exists() == has_words


def test_words_that_were_never_recorded_are_unknown_and_case_does_not_count(tmp_path):
    dataset = Altered(make_dataset(), texts=['Pick the cube'] * 12)
    bundle = create_untrained_bundle(tmp_path, dataset)
    policy = EnginePolicy(bundle)
    tokens = [
        policy.pool_inputs(observe(bundle, dataset, 0, text))[0]['tokens'][0, :4].tolist()
        for text in ('pick the cube', 'PICK the CUBE', 'fold the cube now')
    ]
    assert tokens[0] == tokens[1] == [3, 4, 2, 0]
    assert tokens[2] == [1, 4, 2, 1]


def test_odd_names_and_kinds_of_columns_survive(tmp_path):
    columns = (
        Column('arm joint 1', 'rad', ColumnKind.ANGLE),
        Column('.größe (mm)', 'm'),
        Column('gripper', '1', ColumnKind.GRIPPER),
    )
    dataset = Altered(make_dataset(), info={'action': columns})
    found = create_untrained_bundle(tmp_path, dataset).spec.action.columns
    assert [column.name for column in found] == ['arm joint 1', '.größe (mm)', 'gripper']
    assert [column.kind for column in found] == [column.kind for column in columns]
    assert [column.unit for column in found] == ['rad', 'm', '1']


def test_network_runs_on_the_runtime_of_jetpack_6(tmp_path):
    create_untrained_bundle(tmp_path, Altered(make_dataset(), texts=['go'] * 12))
    model = onnx.load(tmp_path / 'policy.onnx')
    assert model.ir_version <= 9
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [('', 17)]
    assert load_bundle(tmp_path).manifest.source.note.startswith('Random weights')


def test_impossible_datasets_and_used_folders_are_refused(tmp_path):
    with pytest.raises(DatasetError) as caught:
        create_untrained_bundle(tmp_path / 'a', Altered(make_dataset(), state=False, action=False))
    assert caught.value.code == 'no_columns'
    info: DatasetInfo = make_dataset().info
    with pytest.raises(DatasetError):
        create_untrained_bundle(
            tmp_path / 'b', Altered(make_dataset(), info={'num_episodes': 0, 'state': info.state})
        )
    (tmp_path / 'used').mkdir()
    (tmp_path / 'used' / 'notes.txt').write_text('mine')
    with pytest.raises(BundleError, match=r'notes\.txt') as caught:
        create_untrained_bundle(tmp_path / 'used', make_dataset())
    assert caught.value.code == 'folder_not_empty'
