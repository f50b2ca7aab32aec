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
  mistakes:
    description: Whether to give, in place of what they say, a line for each file that cannot be read or is damaged.
    type: bool
    default: false
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
        found, mistakes = [], []
        for host in terms:
            path = os.path.join(folder, f"{host}.yml")
            read = self._read(path) if os.path.exists(path) else {}
            if not _is_rotation(read):
                hint = "take it from a copy; without it the host gets the sequences of logknock_doors again"
                mistakes.append(f"{path}: is empty, or not what the rotation wrote: {hint}")
            found.append(read)
        if self.get_option("mistakes"):
            return mistakes
        if mistakes:
            raise AnsibleLookupError("; ".join(mistakes))
        return found

    def _read(self, path):
        """What the file says now, and not when it was read before: the loader of Ansible would remember that."""
        plain = self._loader.get_real_file(path)  # decrypted, where that is needed
        try:
            with open(plain, encoding="utf-8") as file:
                return yaml.safe_load(file)
        except (ValueError, yaml.YAMLError):
            return None  # whose words would quote it
        finally:
            self._loader.cleanup_tmp_file(plain)


def _is_rotation(read):
    """Whether it is doors with sequences, each of them a list of knocks."""
    return isinstance(read, dict) and all(
        isinstance(state, dict)
        and bool(state.get("sequence"))
        and all(isinstance(each, list) and all(isinstance(knock, str) for knock in each) for each in state.values())
        for state in read.values()
    )
