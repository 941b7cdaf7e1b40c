# SPDX-License-Identifier: Apache-2.0
"""The CPU reference: from pixels as they arrive to the tensor that a policy was trained with."""
