# SPDX-License-Identifier: Apache-2.0
"""TorchScript and torch.export files against PyTorch, preprocessing included; needs torch and onnxscript."""

from contextlib import closing

import numpy as np
import pytest
from support.described import (
    HEIGHT,
    MEAN,
    POSITION,
    ROTATION,
    SIX,
    STD,
    WIDTH,
    observe,
    pose_description,
    write_description,
)

from vla_policy_ros.core.errors import BundleError, ConfigurationError, EngineError
from vla_policy_ros.export.network.convert import export_network
from vla_policy_ros.policies.engine_policy import EnginePolicy

torch = pytest.importorskip('torch')
pytest.importorskip('onnxscript')

# PyTorch warns about its own exporters.
pytestmark = pytest.mark.filterwarnings('ignore')

SIZE = [{'kind': 'resize', 'height': HEIGHT, 'width': WIDTH, 'library': 'opencv'}]


class Pose(torch.nn.Module):
    """One image to position and 6D rotation, apart, together or by name."""

    def __init__(self, returns='tuple'):
        super().__init__()
        torch.manual_seed(0)
        self.features, self.head = torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.Linear(8, 9)
        self.returns = returns

    def forward(self, image):
        x = self.head(torch.relu(self.features(image)).mean((2, 3)))
        if self.returns == 'dict':
            return {'position': x[:, :3], 'rotation': x[:, 3:]}
        return (x[:, :3], x[:, 3:]) if self.returns == 'tuple' else x


class Encoder(torch.nn.Module):
    """Six images in one batch, and a state."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features, self.head = torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.Linear(52, 14)

    def forward(self, images, state):
        x = torch.relu(self.features(images)).mean((2, 3)).reshape(1, 48)
        return self.head(torch.cat((x, state), 1)).reshape(1, 2, 7)


def save(path, module, inputs, *, is_scripted=False):
    module = module.eval()
    if path.suffix == '.pt2':
        torch.export.save(torch.export.export(module, inputs), path)
    elif is_scripted:
        torch.jit.save(torch.jit.script(module), str(path))
    else:
        torch.jit.save(torch.jit.trace(module, inputs), str(path))
    return path


@pytest.fixture
def export(tmp_path):
    def export(network, description):
        describe = write_description(tmp_path / 'd.yaml', description)
        return export_network(network, tmp_path / 'bundle', describe=describe)

    return export


def image_tensor(color):
    level = (np.array(color) / 255 - MEAN) / STD
    return torch.from_numpy(
        np.broadcast_to(level[:, None, None], (3, HEIGHT, WIDTH)).copy()
    ).float()


@pytest.mark.parametrize(
    ('suffix', 'returns'),
    [
        ('.pt', 'tensor'),
        ('.pt', 'tuple'),
        ('.pt2', 'tensor'),
        ('.pt2', 'tuple'),
        ('.pt2', 'dict'),  # torch.jit.trace refuses dictionaries
    ],
)
def test_a_pose_regressor_gives_the_actions_of_pytorch(tmp_path, export, suffix, returns):
    module, color = Pose(returns), (200, 90, 30)
    network = save(tmp_path / f'pose{suffix}', module, (torch.zeros(1, 3, HEIGHT, WIDTH),))
    proven = export(network, pose_description(geometry=SIZE))
    assert max(stage.parity.max_error for stage in proven.stages.values()) < 1e-5
    assert proven.policy.max_error < 1e-5
    with closing(EnginePolicy(proven.bundle)) as policy:
        actions = policy.infer(observe(proven.bundle, {'wrist': color})).actions
    with torch.no_grad():
        result = module(image_tensor(color)[None])
    parts = {'tensor': lambda r: [r], 'tuple': list, 'dict': lambda r: list(r.values())}[returns]
    np.testing.assert_allclose(actions, torch.cat(parts(result), 1).numpy(), atol=1e-5)


@pytest.mark.parametrize('suffix', ['.pt', '.pt2'])
def test_six_cameras_and_a_state(tmp_path, export, suffix):
    module = Encoder()
    example = (torch.zeros(6, 3, HEIGHT, WIDTH), torch.zeros(1, 4))
    network = save(tmp_path / f'encoder{suffix}', module, example, is_scripted=True)
    camera = {'tensor': 'images', 'mean': MEAN, 'std': STD, 'geometry': SIZE}
    names = list('abcdefg')
    description = {
        'cameras': [{'name': name, **camera} for name in SIX],
        'state': {
            'tensors': ['state'],
            'groups': [{'name': 'state', 'names': names[:4], 'units': ['rad']}],
        },
        'action': {'groups': [{'name': 'arm', 'names': names, 'units': ['rad']}], 'step_ms': 50},
    }
    bundle = export(network, description).bundle
    colors = {name: (40 * index, 255 - 30 * index, 7) for index, name in enumerate(SIX)}
    state = np.array([0.5, -1, 2, 0.1], np.float32)
    with closing(EnginePolicy(bundle)) as policy:
        actions = policy.infer(observe(bundle, colors, state)).actions
    images = torch.stack([image_tensor(color) for color in colors.values()])
    with torch.no_grad():
        wanted = module(images, torch.from_numpy(state)[None])[0].numpy()
    np.testing.assert_allclose(actions, wanted, atol=1e-5)


def test_a_free_batch_of_an_exported_program_is_fixed(tmp_path, export):
    example = (torch.zeros(2, 3, HEIGHT, WIDTH),)
    free = {'image': {0: torch.export.Dim('batch')}}
    program = torch.export.export(Pose('tensor').eval(), example, dynamic_shapes=free)
    torch.export.save(program, tmp_path / 'pose.pt2')
    bundle = export(tmp_path / 'pose.pt2', pose_description()).bundle
    assert bundle.tensors['image_0'].shape == (1, 3, HEIGHT, WIDTH)


class Wrong(torch.nn.Module):
    """Returns bfloat16."""

    def forward(self, image):
        return image.mean((2, 3)).to(torch.bfloat16)


def test_outputs_in_bfloat16_are_refused(tmp_path, export):
    network = save(tmp_path / 'pose.pt', Wrong(), (torch.zeros(1, 3, HEIGHT, WIDTH),))
    with pytest.raises(EngineError, match='bfloat16') as error:
        export(network, pose_description(geometry=SIZE))
    assert error.value.code == 'unsupported_type'
    assert not (tmp_path / 'bundle').exists()


def test_torchscript_needs_a_size(tmp_path, export):
    network = save(tmp_path / 'pose.pt', Pose(), (torch.zeros(1, 3, HEIGHT, WIDTH),))
    with pytest.raises(ConfigurationError) as error:
        export(network, pose_description())
    assert error.value.code == 'free_dimension'


def test_outputs_are_chosen_by_their_names(tmp_path, export):
    network = save(tmp_path / 'pose.pt2', Pose('dict'), (torch.zeros(1, 3, HEIGHT, WIDTH),))
    description = pose_description()
    action = {'tensors': ['rotation', 'position'], 'groups': [ROTATION, POSITION], 'step_ms': 10}
    bundle = export(network, {**description, 'action': action}).bundle
    assert bundle.spec.action.names[:2] == ('r0', 'r1')
    action['tensors'] = ['turn']
    with pytest.raises(ConfigurationError, match='position, rotation') as error:
        export_network(
            network,
            tmp_path / 'other',
            describe=write_description(tmp_path / 'd.yaml', {**description, 'action': action}),
        )
    assert error.value.code == 'unknown_output'


@pytest.mark.parametrize('suffix', ['.pt', '.pt2'])
def test_weights_alone_are_no_network(tmp_path, export, suffix):
    path = tmp_path / f'weights{suffix}'
    torch.save(Pose().state_dict(), path)
    with pytest.raises(BundleError, match='weights alone') as error:
        export(path, pose_description(geometry=SIZE))
    assert error.value.code == 'not_torch'


def test_a_network_that_takes_other_shapes_is_refused(tmp_path, export):
    script = save(tmp_path / 'state.pt', torch.nn.Linear(4, 9), (torch.zeros(1, 4),))
    groups = [{'name': 'state', 'names': ['a', 'b', 'c'], 'units': ['rad']}]
    description = {
        'state': {'tensors': ['input'], 'groups': groups},
        'action': {'groups': [POSITION, ROTATION], 'step_ms': 10},
    }
    with pytest.raises(EngineError) as error:
        export(script, description)
    assert error.value.code == 'not_runnable'
