# SPDX-License-Identifier: Apache-2.0
"""The kernel against the CPU reference: built for the host everywhere, and on the device where there is one."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.device_images import DeviceImages, make_frame, make_image, run_on_cpu
from support.host_device import HostDevice

from vla_policy_ros.bundle.geometry import Resize
from vla_policy_ros.bundle.manifest import Camera
from vla_policy_ros.core.errors import ImageError
from vla_policy_ros.core.frame import COMPRESSED_ENCODINGS, Frame
from vla_policy_ros.gpu.limits import DEVICE_DECODE_LIMIT, DEVICE_RESIZE_LIMITS, resize_limit
from vla_policy_ros.gpu.pixels import DEVICE_ENCODINGS
from vla_policy_ros.gpu.preprocess import MAX_JOBS, DevicePreprocessor
from vla_policy_ros.preprocess.decode import ENCODINGS

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RULES = [
    *(
        (library, filter_, True)
        for library in DEVICE_RESIZE_LIMITS
        for filter_ in DEVICE_RESIZE_LIMITS[library]
    ),
    *(('torchvision', filter_, False) for filter_ in ('nearest', 'bilinear', 'bicubic')),
]
ONE_OF_EACH_DECODER = ('bgr8', 'yuyv', 'nv12', 'bayer_grbg8')
CROP = {'kind': 'crop', 'top': 1, 'left': 2, 'height': 30, 'width': 40}


@pytest.fixture(scope='module', params=['host', pytest.param('gpu', marks=pytest.mark.gpu)])
def device(request):
    if request.param == 'host':
        device = HostDevice()
    else:
        from vla_policy_ros.gpu.device import open_device

        device = open_device()
    with device.current():
        yield device
    device.close()


@pytest.fixture(scope='module')
def images(device):
    return DeviceImages(device)


def resize(rule, height, width, **settings):
    library, filter_, antialias = rule
    return {
        'kind': 'resize',
        'height': height,
        'width': width,
        'library': library,
        'filter': filter_,
        'antialias': antialias,
        **settings,
    }


def limit_of(rule):
    library, filter_, antialias = rule
    return resize_limit(
        Resize(height=1, width=1, library=library, filter=filter_, antialias=antialias)
    )


def make_camera(*geometry, name='front', **settings):
    return Camera(name=name, tensor='images', geometry=geometry, **settings)


def largest_difference(got, expected):
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    return np.abs(got.astype(np.float64) - expected.astype(np.float64)).max()


def assert_same(images, camera, *frames):
    """Equal bit for bit: any rounding of the resize shows in every element type."""
    for got, frame in zip(images.run(camera, *frames), frames, strict=True):
        np.testing.assert_array_equal(got, run_on_cpu(camera, frame))


@settings(deadline=None, max_examples=40)
@given(
    rule=st.sampled_from(RULES),
    source=st.tuples(st.integers(1, 90), st.integers(1, 110)),
    target=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    kind=st.sampled_from(['noise', 'ramp', 'board']),
)
def test_every_resize_at_any_size(images, rule, source, target, kind):
    camera = make_camera(resize(rule, *target), layout='hwc', dtype='uint8')
    frame = Frame.from_rgb('front', 0, make_image(kind, *source))
    (got,) = images.run(camera, frame)
    assert largest_difference(got, run_on_cpu(camera, frame)) <= limit_of(rule)


@pytest.mark.parametrize('kind', ['noise', 'board'])
@pytest.mark.parametrize('rule', RULES, ids=str)
@pytest.mark.parametrize(
    ('source', 'target'),
    [
        ((96, 128), (48, 64)),  # halved, which OpenCV treats apart
        ((90, 120), (30, 40)),  # by whole numbers
        ((60, 33), (8, 32)),  # one tile
        ((60, 33), (9, 33)),  # one line more than a tile
        ((60, 33), (7, 31)),  # one less
        ((40, 30), (80, 31)),  # one edge grows
        ((30, 40), (61, 81)),  # both do
    ],
)
def test_resizes_that_libraries_and_tiles_treat_apart(images, rule, source, target, kind):
    camera = make_camera(resize(rule, *target), layout='hwc', dtype='uint8')
    frame = Frame.from_rgb('front', 0, make_image(kind, *source))
    (got,) = images.run(camera, frame)
    assert largest_difference(got, run_on_cpu(camera, frame)) <= limit_of(rule)


@pytest.mark.parametrize(
    'rule', [('pil', 'bicubic', True), ('opencv', 'area', True), ('opencv', 'bilinear', True)]
)
def test_a_resize_so_strong_that_tiles_are_small_and_rows_come_in_parts(images, rule):
    camera = make_camera(resize(rule, 3, 2), layout='hwc', dtype='uint8')
    frame = Frame.from_rgb('front', 0, make_image('noise', 900, 1300))
    (got,) = images.run(camera, frame)
    assert largest_difference(got, run_on_cpu(camera, frame)) <= limit_of(rule)


def test_a_resize_that_no_tile_can_hold_is_refused(device, images):
    camera = make_camera(resize(('pil', 'bicubic', True), 1, 1))
    with pytest.raises(ImageError, match='front') as caught:
        images.run(camera, make_frame('mono8', 2, 16000))
    assert caught.value.code == 'resize_too_strong'


def test_every_encoding_that_is_not_compressed_is_decoded_on_the_device():
    assert set(DEVICE_ENCODINGS) == set(ENCODINGS) - set(COMPRESSED_ENCODINGS)


@pytest.mark.parametrize('padding', [0, 7])
@pytest.mark.parametrize('encoding', DEVICE_ENCODINGS)
def test_every_encoding_with_and_without_padded_rows(images, encoding, padding):
    height, width = 36, 50
    camera = make_camera(
        {'kind': 'crop', 'top': 0, 'left': 0, 'height': height, 'width': width},
        layout='hwc',
        dtype='uint8',
    )
    for is_bigendian in (False, True):
        frame = make_frame(encoding, height, width, padding=padding, is_bigendian=is_bigendian)
        (got,) = images.run(camera, frame)
        assert largest_difference(got, run_on_cpu(camera, frame)) <= DEVICE_DECODE_LIMIT


@pytest.mark.parametrize('padding', [0, 1, 6, 7])
@pytest.mark.parametrize('encoding', DEVICE_ENCODINGS)
def test_every_encoding_resized_from_rows_at_any_address(images, encoding, padding):
    camera = make_camera(resize(('pil', 'bilinear', True), 11, 39), layout='hwc', dtype='uint8')
    for is_bigendian in (False, True):
        frame = make_frame(encoding, 36, 90, padding=padding, is_bigendian=is_bigendian)
        assert_same(images, camera, frame)


@pytest.mark.parametrize('size', [(3, 3), (3, 8), (5, 3), (17, 33)])
@pytest.mark.parametrize(
    'encoding', [name for name in DEVICE_ENCODINGS if name.startswith('bayer')]
)
def test_the_edges_of_bayer_patterns(images, encoding, size):
    camera = make_camera(
        {'kind': 'crop', 'top': 0, 'left': 0, 'height': size[0], 'width': size[1]}, dtype='uint8'
    )
    assert_same(images, camera, make_frame(encoding, *size, seed=3))


@pytest.mark.parametrize('encoding', ['uyvy', 'nv12'])
def test_every_value_of_luma_and_chroma(images, encoding):
    levels = np.arange(256, dtype=np.uint8)
    if encoding == 'uyvy':  # U by row, V by column, some luma each
        data = np.empty((256, 256, 4), np.uint8)
        data[..., 0], data[..., 2] = levels[:, None], levels
        data[..., 1], data[..., 3] = levels[::-1], levels[:, None] // 2 + levels // 2
        frame = Frame('front', 0, encoding, 256, 512, 1024, data.reshape(-1))
    else:
        luma = np.random.default_rng(0).integers(0, 256, (512, 512), np.uint8)
        chroma = np.stack(np.broadcast_arrays(levels[:, None], levels), axis=-1)
        data = np.concatenate([luma.reshape(-1), chroma.reshape(-1)])
        frame = Frame('front', 0, encoding, 512, 512, 512, data)
    camera = make_camera(
        {'kind': 'crop', 'top': 0, 'left': 0, 'height': frame.height, 'width': 512}, dtype='uint8'
    )
    assert_same(images, camera, frame)


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16', 'uint8'])
@pytest.mark.parametrize(
    'layout',
    [
        {'layout': 'chw'},
        {'layout': 'hwc'},
        {'layout': 'patches', 'patch_size': 4},
        {'layout': 'patches', 'patch_size': 4, 'merge_size': 2, 'temporal': 2},
    ],
    ids=['chw', 'hwc', 'patches', 'merged_patches'],
)
@pytest.mark.parametrize('color', ['rgb', 'bgr'])
def test_every_colour_order_layout_and_type(images, color, layout, dtype):
    camera = make_camera(
        resize(('pil', 'bilinear', True), 24, 40),
        color=color,
        dtype=dtype,
        mean=MEAN,
        std=STD,
        **layout,
    )
    assert_same(images, camera, make_frame('rgb8', 50, 61))


@pytest.mark.parametrize('encoding', ONE_OF_EACH_DECODER)
@pytest.mark.parametrize('dtype', ['float32', 'float16', 'uint8'])
def test_decoders_and_resizes_together(images, encoding, dtype):
    rules = [
        ('pil', 'bicubic', True),
        ('pil', 'nearest', True),
        ('opencv', 'bilinear', True),
        ('opencv', 'area', True),
    ]
    for rule in rules:
        camera = make_camera(resize(rule, 21, 35), dtype=dtype, scale=1.0)
        frame = make_frame(encoding, 48, 70, padding=3)
        (got,) = images.run(camera, frame)
        assert largest_difference(got, run_on_cpu(camera, frame)) <= limit_of(rule), rule


PIL, AREA, CUBIC = ('pil', 'bilinear', True), ('opencv', 'area', True), ('opencv', 'bicubic', True)
GEOMETRIES = {
    'crop only': [CROP],
    'crop of a crop': [CROP, {'kind': 'center_crop', 'fraction': 0.7}, resize(PIL, 20, 20)],
    'crop before a resize': [CROP, resize(PIL, 20, 50)],
    'crop after a resize': [resize(PIL, 33, 45), {**CROP, 'height': 20, 'width': 30}],
    'letterbox': [
        resize(PIL, 40, 40, to='fit_inside'),
        {'kind': 'pad', 'height': 40, 'width': 40, 'value': 114},
    ],
    'pad top left': [{'kind': 'pad', 'height': 90, 'width': 130, 'align': 'top_left', 'value': 3}],
    'pad bottom right': [{'kind': 'pad', 'height': 90, 'width': 130, 'align': 'bottom_right'}],
    'crop of a pad': [{'kind': 'pad', 'height': 90, 'width': 130, 'value': 9}, {**CROP, 'top': 50}],
    'crop of nothing but border': [
        {'kind': 'pad', 'height': 200, 'width': 130, 'align': 'top_left', 'value': 7},
        {**CROP, 'top': 150},
    ],
    'pads of two values': [
        {'kind': 'pad', 'height': 70, 'width': 90, 'value': 200},
        {'kind': 'pad', 'height': 80, 'width': 95, 'value': 100},
    ],
    'pads of one value': [
        resize(PIL, 20, 30),
        {'kind': 'pad', 'height': 70, 'width': 90, 'value': 200},
        {'kind': 'pad', 'height': 80, 'width': 95, 'value': 200},
    ],
    'pad before a resize': [{'kind': 'pad', 'height': 90, 'width': 100, 'value': 50}, resize(PIL, 30, 30)],
    'GR00T': [
        resize(AREA, 40, 40, to='shortest_edge'),
        {'kind': 'center_crop', 'fraction': 0.95},
        resize(AREA, 40, 40),
    ],
    'nearest before a resize': [resize(('pil', 'nearest', True), 50, 60), CROP, resize(PIL, 20, 20)],
    'three resizes': [resize(PIL, 50, 60), resize(AREA, 33, 41), resize(PIL, 36, 44)],
    'a resize to the size it has': [resize(PIL, 60, 80)],
}  # fmt: skip


@pytest.mark.parametrize('geometry', GEOMETRIES.values(), ids=GEOMETRIES)
def test_chains_of_steps(images, geometry):
    camera = make_camera(*geometry, mean=MEAN, std=STD)
    assert_same(images, camera, make_frame('rgb8', 60, 80), make_frame('bgr8', 60, 80, seed=1))


def test_frames_of_many_sizes_encodings_and_cameras_in_one_call(device, images):
    cameras = [
        make_camera(resize(PIL, 24, 40), name='a', mean=MEAN),
        make_camera(resize(PIL, 17, 9), name='b', layout='hwc', color='bgr', std=STD),
        make_camera(resize(AREA, 20, 20), resize(AREA, 11, 12), name='c', dtype='float16'),
    ]
    preprocessors = [DevicePreprocessor(device, camera) for camera in cameras]
    frames = [
        make_frame('rgb8', 40, 50),
        make_frame('bgr8', 33, 61, seed=1),
        make_frame('nv12', 40, 50),
    ]
    work = [*itertools.product(preprocessors, frames)]
    expected = [run_on_cpu(camera, frame) for camera, frame in itertools.product(cameras, frames)]
    for got, wanted in zip(images.run_set(work), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    for preprocessor in preprocessors:
        preprocessor.close()


def test_more_images_than_one_launch_takes(images):
    camera = make_camera(resize(PIL, 8, 9))
    assert_same(images, camera, *(make_frame('rgb8', 12, 13, seed=s) for s in range(MAX_JOBS + 3)))


def test_nothing_beside_the_target_is_written(device, images):
    camera = make_camera(resize(PIL, 9, 33), layout='hwc', dtype='uint8')
    preprocessor = DevicePreprocessor(device, camera)
    around = images.put(np.full((3, *preprocessor.image_shape), 77, np.uint8))
    middle = around.view(around.num_bytes // 3, preprocessor.image_shape, 'uint8')
    frame = make_frame('rgb8', 20, 20)
    preprocessor.enqueue(images.stream, [images.job(frame, middle)])
    before, got, after = images.read(around)
    np.testing.assert_array_equal(got, run_on_cpu(camera, frame))
    assert (before == 77).all()
    assert (after == 77).all()
    preprocessor.close()
    images.close()


def test_faults_name_the_camera_and_the_next_image_works(device, images):
    camera = make_camera(CROP)
    preprocessor = DevicePreprocessor(device, camera)
    with pytest.raises(ImageError, match=r"camera 'front', geometry\[0\]"):
        images.run_set([(preprocessor, make_frame('rgb8', 20, 80))])
    with pytest.raises(ImageError, match="'front': got 'jpeg'"):
        images.run_set([(preprocessor, make_frame('jpeg', 40, 80))])
    frame = make_frame('rgb8', 40, 80)
    (got,) = images.run_set([(preprocessor, frame)])
    np.testing.assert_array_equal(got, run_on_cpu(camera, frame))
    preprocessor.close()


class TestCosts:
    """What the host device can count."""

    @pytest.fixture
    def host(self):
        device = HostDevice()
        with device.current():
            yield device
        device.close()  # fails when memory is still held

    def enqueue(self, images, preprocessor, *frames):
        jobs = [images.job(frame, images.new_target(preprocessor)) for frame in frames]
        before = images.device.counts.copy()
        preprocessor.enqueue(images.stream, jobs)
        return images.device.counts - before

    def test_three_cameras_of_one_kernel_are_one_launch(self, host):
        images = DeviceImages(host)
        preprocessor = DevicePreprocessor(host, make_camera(resize(PIL, 24, 40)))
        frames = [make_frame(name, 40, 50) for name in ('rgb8', 'bgr8', 'mono8')]
        self.enqueue(images, preprocessor, *frames)
        assert self.enqueue(images, preprocessor, *frames) == {'launches': 1}
        preprocessor.close()
        images.close()

    @pytest.mark.parametrize('name', ['letterbox', 'GR00T', 'three resizes'])
    def test_nothing_is_allocated_for_a_size_that_was_seen(self, host, name):
        images = DeviceImages(host)
        preprocessor = DevicePreprocessor(host, make_camera(*GEOMETRIES[name]))
        sizes = [(60, 80), (40, 50), (64, 64)]
        for height, width in sizes:
            self.enqueue(images, preprocessor, make_frame('rgb8', height, width))
        for height, width in sizes:
            costs = self.enqueue(images, preprocessor, make_frame('rgb8', height, width))
            assert set(costs) == {'launches'}
        preprocessor.close()
        images.close()

    def test_memory_does_not_grow_with_the_number_of_sizes(self, host):
        images = DeviceImages(host)
        preprocessor = DevicePreprocessor(host, make_camera(*GEOMETRIES['GR00T']))
        held = []
        for width in range(60, 72):
            self.enqueue(images, preprocessor, make_frame('rgb8', 60, width))
            images.close()
            held.append(host.num_open)
        assert held[-1] == held[5]
        preprocessor.close()
        preprocessor.close()

    @pytest.mark.parametrize('name', ['letterbox', 'GR00T', 'crop only', 'pads of two values'])
    def test_prepared_formats_need_no_other_kernel(self, host, name, monkeypatch):
        images = DeviceImages(host)
        preprocessor = DevicePreprocessor(host, make_camera(*GEOMETRIES[name]))
        preprocessor.prepare_formats(['rgb8', 'mono8'])
        monkeypatch.setattr(host, 'load_kernel', None)
        for size in [(60, 80), (64, 60), (40, 42), (44, 44), (31, 80), (60, 90)]:
            self.enqueue(images, preprocessor, make_frame('bgr8', *size))
        preprocessor.close()
        images.close()

    def test_an_encoding_that_cannot_be_prepared_is_refused(self, host):
        preprocessor = DevicePreprocessor(host, make_camera(CROP))
        with pytest.raises(ImageError, match='jpeg'):
            preprocessor.prepare_formats(['jpeg'])
        preprocessor.close()
