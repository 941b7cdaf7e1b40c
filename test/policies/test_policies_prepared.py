# SPDX-License-Identifier: Apache-2.0
import gc

import numpy as np
import pytest
from support.bundles import CAMERA, direct_manifest, make_frame

from vla_policy_ros.bundle.manifest import Manifest
from vla_policy_ros.core.errors import ImageError
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.policies.prepared import CameraSlots


@pytest.fixture
def slots():
    camera = Manifest.model_validate({**direct_manifest(), 'files': {}}).cameras[0]
    return CameraSlots(camera, 2)


def test_slot_is_free_again_when_the_last_reference_is_gone(slots):
    first = slots.prepare(make_frame())
    alias = [first]
    assert slots.num_free == 1
    del first
    assert slots.num_free == 1
    alias.clear()
    assert slots.num_free == 2


def test_slot_comes_back_out_of_a_reference_cycle(slots):
    ring = [slots.prepare(make_frame())]
    ring.append(ring)
    del ring
    gc.collect()
    assert slots.num_free == 2


def test_no_free_slot_is_named_and_ends_when_one_is_let_go(slots):
    held = [slots.prepare(make_frame()) for _ in range(2)]
    with pytest.raises(ImageError, match=rf"'{CAMERA}'.*2 prepared images") as caught:
        slots.prepare(make_frame())
    assert caught.value.code == 'no_free_slot'
    held.pop()
    slots.prepare(make_frame())


def test_broken_frame_does_not_cost_a_slot(slots):
    broken = Frame(CAMERA, 0, 'jpeg', 0, 0, 0, np.zeros(10, np.uint8))
    for _ in range(3):
        with pytest.raises(ImageError):
            slots.prepare(broken)
    assert slots.num_free == 2


def test_slots_are_used_again_and_again(slots):
    addresses = {slots.prepare(make_frame()).image.ctypes.data for _ in range(10)}
    assert len(addresses) <= 2


def test_image_says_whose_and_when_it_is(slots):
    image = slots.prepare(make_frame(51, stamp_ns=7))
    assert (image.camera, image.stamp_ns) == (CAMERA, 7)
    np.testing.assert_allclose(image.image, 0.2, rtol=1e-6)


def test_image_is_copied_to_its_place_only_by_the_slots_it_lies_in(slots):
    camera = Manifest.model_validate({**direct_manifest(), 'files': {}}).cameras[0]
    out = np.zeros((3, 8, 8), np.float32)
    assert not CameraSlots(camera, 1).copy(slots.prepare(make_frame(51)), out)
    assert (out == 0).all()
    assert slots.copy(slots.prepare(make_frame(51)), out)
    np.testing.assert_allclose(out, 0.2, rtol=1e-6)
