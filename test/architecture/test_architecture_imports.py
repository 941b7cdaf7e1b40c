# SPDX-License-Identifier: Apache-2.0
"""Which libraries a room may need: proven by importing every module of it with the others out of reach."""

import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[2] / 'vla_policy_ros'
HEAVY = {
    'PIL',
    'av',
    'cuda',
    'cv2',
    'onnx',
    'onnxruntime',
    'onnxslim',
    'pyarrow',
    'pycuda',
    'openvino',
    'pydantic',
    'rclpy',
    'rich',
    'rosbags',
    'tensorrt',
    'tensorrt_rtx',
    'tokenizers',
    'torch',
    'yaml',
}
SCHEMA = {'pydantic', 'yaml'}
GPU = {
    'cuda',
    'onnxslim',
    'openvino',
    'pycuda',
    'tensorrt',
    'tensorrt_rtx',
    'torch',
}  # never at import
NEEDS = {
    'core': set(),
    'scheduling': set(),
    'execution': set(),
    'bundle': SCHEMA | {'onnx', 'tokenizers'},
    'deployment': SCHEMA,
    'preprocess': SCHEMA | {'cv2', 'PIL'},
    'gpu': SCHEMA | {'cv2', 'PIL'},
    'datasets': SCHEMA | {'cv2', 'av', 'pyarrow', 'rosbags'},
    'engines': SCHEMA | {'onnx', 'onnxruntime'},
    'policies': HEAVY - GPU - {'rclpy', 'rich'},
    'runtime': SCHEMA,
    'evaluation': SCHEMA,
    'export': HEAVY - GPU - {'rclpy', 'rich'},
    'sample': set(),
    'tools': SCHEMA,
}
# Engines that are one library's: the registry imports each of them when it is asked for by name.
ONLY_WITH_ITS_LIBRARY = tuple(
    f'vla_policy_ros.engines.{name}' for name in ('torch', 'onnx_to_torch', 'openvino')
)
IMPORT_WITHOUT = """
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {blocked!r}:
            raise ImportError(f'{{name}} is out of reach')

sys.meta_path.insert(0, Refuse())
for module in {modules!r}:
    importlib.import_module(module)
"""


def modules_of(room):
    for path in sorted((PACKAGE / room).rglob('*.py')):
        parts = path.relative_to(PACKAGE.parent).with_suffix('').parts
        yield '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


@pytest.mark.parametrize('room', sorted(NEEDS))
def test_room_needs_only_its_own_libraries(room):
    modules = [name for name in modules_of(room) if not name.startswith(ONLY_WITH_ITS_LIBRARY)]
    assert modules
    code = IMPORT_WITHOUT.format(blocked=HEAVY - NEEDS[room], modules=modules)
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert result.returncode == 0, result.stderr


def test_every_room_is_listed():
    rooms = {path.name for path in PACKAGE.iterdir() if (path / '__init__.py').exists()}
    assert rooms - {'ros'} == set(NEEDS)


def test_the_block_works():
    code = IMPORT_WITHOUT.format(blocked={'json'}, modules=['json.decoder'])
    assert subprocess.run([sys.executable, '-c', code], capture_output=True).returncode


@pytest.mark.parametrize(
    'path', sorted(PACKAGE.rglob('*.py')), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_file_is_licensed_and_readable(path):
    lines = path.read_text(encoding='utf-8').splitlines()
    assert lines[0] == '# SPDX-License-Identifier: Apache-2.0'
    assert len(lines) <= 420
