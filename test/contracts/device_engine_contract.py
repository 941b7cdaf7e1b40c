# SPDX-License-Identifier: Apache-2.0
"""The contract of engines for those whose tensors are on a device."""

import pytest
from contracts.engine_contract import EngineContract
from support.array_engine import ArrayEngine


class DeviceEngineContract(EngineContract):
    """Subclasses give `device`, which is current, and `plan_engine` with the doubler loaded."""

    # A device tensor is contiguous by definition.
    test_buffer_with_gaps_is_refused = None

    @pytest.fixture
    def engine(self, plan_engine, device):
        engine = ArrayEngine(plan_engine, device)
        yield engine
        engine.close()
