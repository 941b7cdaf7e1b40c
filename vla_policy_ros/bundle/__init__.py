# SPDX-License-Identifier: Apache-2.0
"""The policy bundle: manifest, statistics and normalisation, file hashes, probe. Nothing in it is ever executed."""
