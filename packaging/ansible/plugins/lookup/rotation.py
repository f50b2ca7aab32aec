# MIT License (see LICENSE or https://opensource.org/license/mit)
"""Where the sequences of a host stand while they are being replaced."""

DOCUMENTATION = r"""
name: rotation
author:
  - logknock developers (!UNKNOWN) <logknock@logknock.invalid>
version_added: 0.1.0
short_description: The sequences of hosts, as the rotation has left them
description:
  - Reads C(FOLDER/HOST.yml) for each host; a host without a file has no rotation, C({}).
  - The files may be encrypted by C(ansible-vault).
options:
  _terms:
    description: The hosts' names in the inventory.
    required: true
  folder:
    description: Where the files are, on the controller.
    type: path
    required: true
"""

EXAMPLES = r"""
- name: Count the doors whose sequences have been replaced
  ansible.builtin.debug:
    msg: "{{ lookup('logknock.logknock.rotation', inventory_hostname, folder=logknock_sequences_folder) | length }}"
"""

RETURN = r"""
_raw:
  description: For each host a dictionary with, by door, C(sequence), C(next) and C(previous).
  type: list
  elements: dict
"""

import os

import yaml
from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase


class LookupModule(LookupBase):
    """The lookup."""

    def run(self, terms, variables=None, **kwargs):
        """Raises AnsibleLookupError where a file is no dictionary of doors."""
        self.set_options(var_options=variables, direct=kwargs)
        folder = self.get_option("folder")
        found = []
        for host in terms:
            path = os.path.join(folder, f"{host}.yml")
            read = self._read(path) if os.path.exists(path) else {}
            if not isinstance(read, dict) or not all(isinstance(state, dict) for state in read.values()):
                raise AnsibleLookupError(f"{path}: is not what the rotation wrote")
            found.append(read)
        return found

    def _read(self, path):
        """What the file says now, and not when it was read before: the loader of Ansible would remember that."""
        plain = self._loader.get_real_file(path)  # decrypted, where that is needed
        try:
            with open(plain, encoding="utf-8") as file:
                return yaml.safe_load(file)
        finally:
            self._loader.cleanup_tmp_file(plain)
