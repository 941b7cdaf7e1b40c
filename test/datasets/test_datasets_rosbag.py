# SPDX-License-Identifier: Apache-2.0
"""Bags of both storages, written with the rosbags library."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from contracts.dataset_contract import DatasetContract
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.specs import Column, ColumnKind
from vla_policy_ros.datasets.registry import find_dataset_faults, open_dataset
from vla_policy_ros.datasets.rosbag import BagTopics, RosbagDataset
from vla_policy_ros.datasets.synthetic import read_step_index

START_NS = 1_700_000_000_000_000_000
STEP_NS = 40_000_000
STEPS = 8
ACTION_CHUNK = Path(__file__).parents[2] / 'msg' / 'ActionChunk.msg'


def make_types():
    store = get_typestore(Stores.LATEST)
    store.register(get_types_from_msg(ACTION_CHUNK.read_text(), 'vla_policy_ros/msg/ActionChunk'))
    return store


class BagWriter:
    """Writes messages with short calls; the receipt is 5 ms after the stamp."""

    def __init__(self, writer):
        self.store = make_types()
        self.writer = writer
        self.connections = {}

    def write(self, topic, kind, stamp_ns, received_ns=None, tail=b'', **fields):
        if topic not in self.connections:
            self.connections[topic] = self.writer.add_connection(topic, kind, typestore=self.store)
        types = self.store.types
        if 'header' in self.store.fielddefs[kind][1][0]:
            time = types['builtin_interfaces/msg/Time'](*divmod(stamp_ns, 10**9))
            fields['header'] = types['std_msgs/msg/Header'](time, '')
        data = self.store.serialize_cdr(types[kind](**fields), kind)
        data = bytes(data) + tail
        self.writer.write(self.connections[topic], received_ns or stamp_ns + 5_000_000, data)

    def image(self, topic, stamp_ns, pixels, encoding='rgb8', padding=0, **extra):
        rows = pixels.reshape(pixels.shape[0], -1)
        rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
        fields = {
            'height': pixels.shape[0],
            'width': pixels.shape[1],
            'encoding': encoding,
            'is_bigendian': 0,
            'step': rows.shape[1],
            'data': rows.reshape(-1),
        }
        self.write(topic, 'sensor_msgs/msg/Image', stamp_ns, **fields, **extra)

    def compressed(self, topic, stamp_ns, data):
        fields = {'format': 'jpeg', 'data': np.frombuffer(data, np.uint8)}
        self.write(topic, 'sensor_msgs/msg/CompressedImage', stamp_ns, **fields)

    def joints(self, topic, stamp_ns, values, **extra):
        empty = np.zeros(0)
        fields = {
            'name': list(values),
            'position': np.array(list(values.values()), np.float64),
            'velocity': empty,
            'effort': empty,
        }
        self.write(topic, 'sensor_msgs/msg/JointState', stamp_ns, **{**fields, **extra})

    def trajectory(self, topic, stamp_ns, names, points, **extra):
        types = self.store.types
        duration = types['builtin_interfaces/msg/Duration'](0, 0)
        empty = np.zeros(0)
        point = types['trajectory_msgs/msg/JointTrajectoryPoint']
        made = [point(np.array(row, np.float64), empty, empty, empty, duration) for row in points]
        kind = 'trajectory_msgs/msg/JointTrajectory'
        self.write(topic, kind, stamp_ns, joint_names=names, points=made, **extra)

    def text(self, topic, received_ns, text):
        self.write(topic, 'std_msgs/msg/String', 0, received_ns, data=text)

    def array(self, topic, received_ns, values):
        types = self.store.types
        layout = types['std_msgs/msg/MultiArrayLayout']([], 0)
        fields = {'layout': layout, 'data': np.array(values, np.float64)}
        self.write(topic, 'std_msgs/msg/Float64MultiArray', 0, received_ns, **fields)


@pytest.fixture
def new_bag(tmp_path):
    """Return a function that opens a bag for writing, as a context manager, and its folder."""

    def make(storage=StoragePlugin.MCAP, name='bag'):
        return Writer(tmp_path / name, version=9, storage_plugin=storage), tmp_path / name

    return make


def write_robot(bag, source, steps=STEPS):
    """Two cameras (raw at 25 Hz, JPEG at 12.5 Hz), joints at 50 Hz on two topics, commands, a prompt."""
    episode = source.episode(0)
    bag.text('/policy/instruction', START_NS, 'wave')
    front, wrist = episode.images('front'), episode.images('wrist')
    for i in range(steps):
        stamp_ns = START_NS + i * STEP_NS
        bag.image('/camera/front/image_raw', stamp_ns, next(front), padding=5)
        picture = cv2.cvtColor(next(wrist), cv2.COLOR_RGB2BGR)
        if i % 2 == 0:
            jpeg = cv2.imencode('.jpg', picture)[1].tobytes()
            bag.compressed('/camera/wrist/image_raw/compressed', stamp_ns + 3_000_000, jpeg)
        for half in (0, 1):
            at_ns = stamp_ns + half * STEP_NS // 2
            bag.joints('/joint_states', at_ns, {'a': i + half / 2, 'b': -i - half / 2})
            bag.joints('/hand/joint_states', at_ns + 1_000_000, {'left_gripper': 10 + i})
        bag.trajectory('/arm/command', stamp_ns, ['a', 'b'], [[i + 0.25, i], [99, 99]])
        if i == 4:
            bag.text('/policy/instruction', stamp_ns + 1, 'stop')


@pytest.fixture(params=list(StoragePlugin), ids=['sqlite3', 'mcap'])
def robot_path(request, new_bag, source):
    writer, path = new_bag(request.param)
    with writer:
        write_robot(BagWriter(writer), source)
    return path


class TestContract(DatasetContract):
    @pytest.fixture
    def dataset(self, robot_path):
        opened = open_dataset(robot_path)
        yield opened
        opened.close()


class TestRobot:
    def test_streams_are_discovered_and_named(self, robot_path):
        info = RosbagDataset(robot_path).info
        assert (info.name, info.format, info.step_ns) == ('bag', 'rosbag2', STEP_NS)
        assert [(c.name, c.height, c.width) for c in info.cameras] == [
            ('front', 48, 64),
            ('wrist', 32, 64),
        ]
        gripper = Column('left_gripper', '', ColumnKind.GRIPPER)
        assert info.state == (gripper, Column('a', ''), Column('b', ''))
        assert [column.name for column in info.action] == ['a', 'b']
        assert info.warnings == ()

    def test_numbers_are_taken_at_the_steps(self, robot_path):
        episode = RosbagDataset(robot_path).episode(0)
        steps = np.arange(STEPS)
        np.testing.assert_array_equal(episode.stamps_ns, START_NS + steps * STEP_NS)
        np.testing.assert_array_equal(episode.state, np.stack([10 + steps, steps, -steps], 1))
        np.testing.assert_array_equal(episode.action, np.stack([steps + 0.25, steps], 1))
        assert list(episode.instructions) == ['wave'] * 5 + ['stop'] * 3

    def test_images_are_the_nearest(self, robot_path):
        episode = RosbagDataset(robot_path).episode(0)
        assert [read_step_index(image) for image in episode.images('front')] == list(range(STEPS))
        # 12.5 Hz, 3 ms late: an odd step lies 37 ms after one picture and 43 ms before the next.
        wrist = [read_step_index(image) for image in episode.images('wrist')]
        assert wrist == [0, 0, 2, 2, 4, 4, 6, 6]

    def test_a_bag_without_faults_has_none(self, robot_path):
        assert find_dataset_faults(robot_path) == []


def test_a_bare_file_opens(new_bag, source):
    writer, path = new_bag()
    with writer:
        write_robot(BagWriter(writer), source)
    dataset = open_dataset(path / 'bag.mcap')
    assert len(dataset.episode(0).stamps_ns) == STEPS


def test_named_topics_take_the_place_of_discovery(new_bag, source):
    writer, path = new_bag()
    with writer:
        bag = BagWriter(writer)
        write_robot(bag, source)
        for i in range(STEPS):
            bag.array('/targets', START_NS + i * STEP_NS, [i, 2 * i])
    topics = BagTopics(
        cameras=('/camera/wrist/image_raw/compressed',), state=(), action=('/targets',)
    )
    dataset = open_dataset(path, topics=topics)
    assert [camera.name for camera in dataset.info.cameras] == ['wrist']
    assert dataset.info.state == ()
    assert dataset.episode(0).state.shape == (STEPS // 2, 0)
    assert [column.name for column in dataset.info.action] == ['action_0', 'action_1']
    np.testing.assert_array_equal(dataset.episode(0).action[:, 1], [0, 4, 8, 12])


def test_chunks_are_read_with_the_definition_in_the_bag(new_bag, source):
    writer, path = new_bag()
    kind = 'vla_policy_ros/msg/ActionChunk'
    with writer:
        bag = BagWriter(writer)
        write_robot(bag, source, steps=2)
        time = bag.store.types['builtin_interfaces/msg/Time'](0, 0)
        fields = {name: value for name, value in _empty_chunk(time).items() if name != 'header'}
        for i in range(2):
            fields['values'] = np.array([i, 0.5, 8, 9], np.float32)
            bag.write('/chunks', kind, START_NS + i * STEP_NS, **fields)
    dataset = open_dataset(path, topics=BagTopics(action=('/chunks',)))
    assert dataset.info.action == (Column('a', 'rad'), Column('g', '1', ColumnKind.GRIPPER))
    np.testing.assert_array_equal(dataset.episode(0).action, [[0, 0.5], [1, 0.5]])


def _empty_chunk(time):
    names = {
        'names': ['a', 'g'],
        'kinds': ['linear', 'gripper'],
        'units': ['rad', '1'],
        'representations': ['absolute', 'absolute'],
    }
    numbers = {'sequence': 0, 'epoch': 0, 'step_ns': 1, 'horizon': 2, 'instruction_id': 0}
    stages = {'stream_names': [], 'stage_names': [], 'instruction': '', 'policy_id': ''}
    ages = np.zeros(0, np.int64)
    latencies = {'stream_ages_ns': ages, 'stage_latencies_ns': ages}
    stamps = {'publish_stamp': time, 'start_stamp': time}
    return {**stamps, **numbers, **names, **stages, **latencies}


class TestOddities:
    def test_zero_stamps_count_as_the_time_of_receipt(self, new_bag):
        writer, path = new_bag()
        with writer:
            bag = BagWriter(writer)
            for i in range(3):
                pixels = np.zeros((4, 4, 3), np.uint8)
                bag.image('/image', 0, pixels, received_ns=START_NS + i * STEP_NS)
        dataset = open_dataset(path)
        assert dataset.info.cameras[0].name == 'camera'
        assert dataset.episode(0).stamps_ns[2] == START_NS + 2 * STEP_NS
        assert dataset.episode(0).action.shape == (3, 0)

    def test_repeated_stamps_are_left_out_with_a_warning(self, new_bag):
        writer, path = new_bag()
        with writer:
            bag = BagWriter(writer)
            for i, stamp in enumerate((0, 1, 1, 0, 2)):
                pixels = np.full((4, 4, 3), 10 * i, np.uint8)
                received_ns = START_NS + i * STEP_NS
                bag.image('/image', START_NS + stamp * STEP_NS, pixels, received_ns=received_ns)
        dataset = open_dataset(path)
        assert [image[0, 0, 0] for image in dataset.episode(0).images('camera')] == [0, 10, 40]
        assert '2 images' in dataset.info.warnings[0]

    def test_depth_is_left_out_when_discovered_and_refused_when_named(self, new_bag):
        writer, path = new_bag()
        with writer:
            bag = BagWriter(writer)
            for i in range(2):
                stamp_ns = START_NS + i * STEP_NS
                bag.image('/a/depth', stamp_ns, np.zeros((4, 8, 1), np.uint8), '16UC1')
                bag.image('/b/image', stamp_ns, np.zeros((4, 4, 3), np.uint8), 'bgr8')
        info = open_dataset(path).info
        assert [camera.name for camera in info.cameras] == ['b']
        told = "/a/depth is left out: it holds '16UC1', which is depth and no picture"
        assert info.warnings == (told,)
        with pytest.raises(DatasetError) as fault:
            open_dataset(path, topics=BagTopics(cameras=('/a/depth',)))
        assert fault.value.code == 'unknown_encoding'

    def test_far_samples_are_told(self, new_bag):
        writer, path = new_bag()
        with writer:
            bag = BagWriter(writer)
            bag.joints('/joint_states', START_NS, {'a': 1.0})
            for i in range(4):
                bag.image('/image', START_NS + i * 10**8, np.zeros((4, 4, 3), np.uint8))
        dataset = open_dataset(path)
        assert dataset.info.warnings == ('state: samples lie up to 300 ms from their image',)

    def test_names_without_positions(self, new_bag, source):
        writer, path = new_bag()
        with writer:
            bag = BagWriter(writer)
            bag.trajectory('/command', START_NS, ['a', 'b'], [[1.0]])
            for i in range(2):
                bag.image('/image', START_NS + i * STEP_NS, np.zeros((4, 4, 3), np.uint8))
        with pytest.raises(DatasetError, match='1 values for 2 names') as fault:
            open_dataset(path)
        assert fault.value.code == 'wrong_length'

    def test_one_image_is_too_short(self, new_bag):
        writer, path = new_bag()
        with writer:
            BagWriter(writer).image('/image', START_NS, np.zeros((4, 4, 3), np.uint8))
        with pytest.raises(DatasetError) as fault:
            open_dataset(path)
        assert fault.value.code == 'too_short'

    def test_a_topic_without_positions_is_left_out(self, new_bag):
        writer, path = new_bag()
        with writer:
            bag = BagWriter(writer)
            for i in range(2):
                at_ns = START_NS + i * STEP_NS
                bag.image('/image', at_ns, np.zeros((4, 4, 3), np.uint8))
                bag.joints('/joint_states', at_ns, {'a': 1.0})
                wheels = {'position': np.zeros(0), 'velocity': np.ones(1)}
                bag.joints('/wheels/joint_states', at_ns, {'wheel': 0.0}, **wheels)
        info = open_dataset(path).info
        assert [column.name for column in info.state] == ['a']
        told = '/wheels/joint_states is left out: its messages have no positions'
        assert info.warnings == (told,)

    @pytest.mark.parametrize('tail', [bytes(4), b'rest' * 3])
    def test_bytes_after_the_end_of_a_message(self, new_bag, tail):
        # What rclpy's `serialize_message` leaves behind a message with empty sequences of doubles.
        writer, path = new_bag()
        with writer:
            bag = BagWriter(writer)
            for i in range(3):
                at_ns = START_NS + i * STEP_NS
                bag.image('/image', at_ns, np.zeros((4, 4, 3), np.uint8))
                bag.joints('/joint_states', at_ns, {'a': i}, tail=tail)
                bag.trajectory('/command', at_ns, ['a'], [[i + 0.5]], tail=tail)
        episode = open_dataset(path).episode(0)
        np.testing.assert_array_equal(episode.state[:, 0], [0, 1, 2])
        np.testing.assert_array_equal(episode.action[:, 0], [0.5, 1.5, 2.5])

    @pytest.mark.parametrize('ahead_s', [-3600, -1.5, 40])
    def test_a_camera_clock_that_is_not_that_of_the_receipt(self, new_bag, ahead_s):
        """Joints are stamped by the camera's clock; commands and texts are not stamped."""
        writer, path = new_bag()
        ahead_ns = int(ahead_s * 1e9)
        with writer:
            bag = BagWriter(writer)
            for i in range(6):
                received_ns = START_NS + i * STEP_NS
                at_ns = received_ns + ahead_ns
                pixels = np.zeros((4, 4, 3), np.uint8)
                bag.image('/image', at_ns, pixels, received_ns=received_ns)
                bag.joints('/joint_states', at_ns, {'a': i}, received_ns=received_ns)
                bag.trajectory('/command', 0, ['a'], [[i + 0.5]], received_ns=received_ns)
                if i in (0, 3):
                    bag.text('/instruction', received_ns - 1, f'text {i}')
        dataset = open_dataset(path)
        episode = dataset.episode(0)
        assert episode.stamps_ns[0] == START_NS + ahead_ns
        np.testing.assert_array_equal(episode.state[:, 0], range(6))
        np.testing.assert_array_equal(episode.action[:, 0], np.arange(6) + 0.5)
        assert list(episode.instructions) == ['text 0'] * 3 + ['text 3'] * 3
        (warning,) = dataset.info.warnings
        assert f'{ahead_s:+.3f} s off' in warning

    def test_the_step_of_a_camera_that_jitters_and_loses_images(self, new_bag):
        writer, path = new_bag()
        late_ns = np.random.default_rng(0).integers(-4_000_000, 4_000_000, 60)
        late_ns[[0, 59]] = 0
        with writer:
            bag = BagWriter(writer)
            for i in sorted({*range(60)} - {20, 21, 40}):
                at_ns = START_NS + i * STEP_NS + int(late_ns[i])
                bag.image('/image', at_ns, np.zeros((4, 4, 3), np.uint8))
        assert open_dataset(path).info.step_ns == STEP_NS


class TestFaults:
    def test_a_message_that_is_not_plain_cdr(self, new_bag):
        writer, path = new_bag()
        with writer:
            bag = BagWriter(writer)
            bag.image('/image', START_NS, np.zeros((4, 4, 3), np.uint8))
            writer.write(bag.connections['/image'], START_NS + 1, b'\0\7\0\0rest')
        (fault,) = find_dataset_faults(path)
        assert fault.code == 'broken_bag'
        assert 'not plain CDR: 0007' in fault.got
        assert '`mcap recover`' in fault.next_step

    @pytest.mark.parametrize('share', [0.2, 0.6, 0.95])
    def test_truncated_file(self, robot_path, share):
        file = next(path for path in robot_path.iterdir() if path.suffix in ('.mcap', '.db3'))
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])
        faults = find_dataset_faults(robot_path)
        assert faults
        assert {fault.code for fault in faults} <= {'broken_bag', 'broken_image'}

    def test_broken_images_and_numbers_are_all_found(self, new_bag):
        writer, path = new_bag()
        with writer:
            bag = BagWriter(writer)
            for i in range(5):
                stamp_ns = START_NS + i * STEP_NS
                jpeg = cv2.imencode('.jpg', np.zeros((8, 8, 3), np.uint8))[1].tobytes()
                bag.compressed('/image', stamp_ns, jpeg[:-9] if i in (2, 4) else jpeg)
                bag.joints('/joint_states', stamp_ns, {'a': np.nan if i == 1 else 0.0})
        codes = [fault.code for fault in find_dataset_faults(path)]
        assert codes == ['not_finite', 'broken_image', 'broken_image']

    def test_missing_bag(self, tmp_path):
        assert [f.code for f in find_dataset_faults(tmp_path / 'no.mcap')] == ['missing_file']
