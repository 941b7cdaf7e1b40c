# SPDX-License-Identifier: Apache-2.0
"""Robot and policy in one YAML file: which topics feed the policy, where its chunks go, how inputs are matched."""
