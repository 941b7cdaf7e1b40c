# SPDX-License-Identifier: Apache-2.0
"""Which Isaac-GR00T is installed: all versions have the same name; import it only where there is one."""

from support.requirements import is_there

_OWN_MODULES = {
    'n1.7': 'gr00t.model.gr00t_n1d7',
    'n1.6': 'gr00t.model.gr00t_n1d6',
    'n1.5': 'gr00t.model.gr00t_n1',
}
VERSION = next(version for version, module in _OWN_MODULES.items() if is_there(module))
