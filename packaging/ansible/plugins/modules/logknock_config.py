#!/usr/bin/python
# MIT License (see LICENSE or https://opensource.org/license/mit)
"""Writes a file of secrets for logknock, after trying it, and loads the firewall rules that follow from it on trial.

Rule 1: what the command refuses is never written. Rule 2: no sequence and no knock port leaves the host, in a diff
least of all. Rule 3: what is on trial undoes itself, rules and file alike, and needs nobody's connection for it.
"""

DOCUMENTATION = r"""
---
module: logknock_config
short_description: Write logknock's configuration, and load its rules on trial
version_added: 0.1.0
description:
  - Writes a TOML file that holds sequences, if C(validate) has nothing against it.
  - The file is tried under another name beside a view of the C(conf.d) that it will have beside it, in check mode too.
  - The diff shows what changes by its keys. Sequences are never shown, only that they differ.
  - With I(rules=trial) the firewall rules that follow from the file are loaded by C(logknock rules apply --confirm) in
    a unit of systemd, C(logknock-trial.service). Unless somebody runs C(logknock rules confirm) in time, the
    rules from before come back, and the file from before with them, whatever has become of the connection.
  - Nobody is trusted because of the session that loads the rules, so that a new connection is a real test of them.
options:
  path:
    description: The file.
    type: path
    required: true
  content:
    description: What it says.
    type: str
    required: true
  validate:
    description: The command that tries it, C(%s) in it being the file to try; not run where the program is not there.
    type: str
  valid_codes:
    description: The exit codes of the command that mean that the file is right.
    type: list
    elements: int
    default: [0]
  rules:
    description:
      - C(keep) leaves the firewall alone; C(apply) loads rules that differ, for good; C(trial) loads them on trial.
    type: str
    choices: [keep, apply, trial]
    default: keep
  confirm:
    description: How long a trial takes, in seconds.
    type: int
    default: 60
extends_documentation_fragment:
  - ansible.builtin.files
attributes:
  check_mode:
    description: Says what would change, and changes nothing.
    support: full
  diff_mode:
    description: Shows what changes, but for sequences.
    support: full
author:
  - logknock developers (!UNKNOWN) <logknock@logknock.invalid>
"""

EXAMPLES = r"""
- name: Write the configuration, and load the rules on trial
  logknock.logknock.logknock_config:
    path: /etc/logknock/logknock.toml
    content: "{{ settings | logknock.logknock.to_toml }}"
    owner: root
    group: logknock
    mode: "0640"
    validate: logknock check -c %s
    rules: trial
"""

RETURN = r"""
file_changed:
  description: Whether the file is, or would be, another one.
  type: bool
  returned: always
rules_differ:
  description: Whether the rules that are loaded are not those of the file; null where that was not looked at.
  type: bool
  returned: always
on_trial:
  description: Whether rules wait to be confirmed.
  type: bool
  returned: always
"""

import json
import os
import shlex
import shutil
import tempfile
import time

from ansible.module_utils.basic import AnsibleModule

try:
    import tomllib
except ImportError:  # Python 3.10 and older, on which logknock does not run
    tomllib = None

UNIT = "logknock-trial.service"

# Loading takes a second at most; a machine that is busy with other things is given some more.
PATIENCE = 60.0

# What `logknock rules apply --confirm` says once the rules are loaded.
LOADED = "still reachable?"

# Keys whose values are secrets. Files of one-time sequences are named, and not read.
SECRET = ("sequence",)

# Elements that give away what to knock: only how many of them change is told.
SECRET_SETS = ("watched", "traps")

# What the trial's unit runs: the program, the configuration, the trial's length, the configuration from before, and
# whether the service ran.
TRIAL = r"""
logknock=$1 config=$2 seconds=$3 previous=$4 active=$5
"$logknock" rules apply -c "$config" --confirm "${seconds}s"
code=$?
if [ $code -eq 0 ]; then
  rm -f "$previous"
elif [ -e "$previous" ]; then
  [ -s "$previous" ] || mv -f "$config" "$config.unconfirmed"
  if [ -s "$previous" ]; then mv -f "$previous" "$config"; else rm "$previous"; fi
  if [ "$active" = active ]; then systemctl reload logknock.service; else systemctl stop logknock.service; fi
fi
echo "exit $code"
"""


def flat(table, name=""):
    """The keys of a TOML document with their whole paths, and their values."""
    found = {}
    for key, value in table.items():
        path = name + "." + key if name else key
        if isinstance(value, dict):
            found.update(flat(value, path))
        else:
            found[path] = value
    return found


def parsed(text):
    """The keys and values of a file; None where it is no TOML."""
    if tomllib is None:
        return None
    try:
        return flat(tomllib.loads(text))
    except ValueError:
        return None


def shown(before, after):
    """Both files as lines to compare, without a secret: of one that differs only that it does."""
    old, new = parsed(before), parsed(after)
    if old is None or new is None:
        return "(not shown)\n", "(not shown)\n" if before == after else "(not shown, another)\n"
    sides = []
    for side, other in ((old, None), (new, old)):
        lines = []
        for path in sorted(side):
            value = json.dumps(side[path], default=str)
            if path.rpartition(".")[2] in SECRET:
                another = other is not None and other.get(path, side[path]) != side[path]
                value = "(hidden, another)" if another else "(hidden)"
            lines.append(f"{path} = {value}\n")
        sides.append("".join(lines))
    return sides[0], sides[1]


class Configuration:
    """The file as it is and as it is to be."""

    def __init__(self, module):
        self.module = module
        self.path = module.params["path"]
        self.previous = self.path + ".previous"
        self.text = module.params["content"]
        self.before = self._read()
        self.staged = self._stage()
        self.program = self._program()
        self.differs = None  # whether the rules do, as far as that is known
        self.changes = {}

    @property
    def changed(self):
        """Whether the file is another one."""
        return self.before != self.text

    def _read(self):
        try:
            with open(self.path, "rb") as file:
                return file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            return self.module.fail_json(msg=f"{self.path}: {error.strerror}")

    def _stage(self):
        """The new file in a place of its own, as its command will find it later: with its owner, mode and conf.d."""
        folder = tempfile.mkdtemp(dir=self.module.tmpdir)
        staged = os.path.join(folder, os.path.basename(self.path))
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(self.text.encode("utf-8"))
        neighbours = os.path.join(os.path.dirname(self.path), "conf.d")
        if os.path.isdir(neighbours):
            os.symlink(neighbours, os.path.join(folder, "conf.d"))
        self._own(staged)
        return staged

    def _own(self, path):
        """Give a file the owner, group and mode that are wanted; in check mode those that are there by now."""
        arguments = self.module.load_file_common_arguments(self.module.params, path=path)
        if self.module.check_mode:
            arguments["owner"] = arguments["group"] = None
        check_mode, self.module.check_mode = self.module.check_mode, False
        self.module.set_fs_attributes_if_different(arguments, False)
        self.module.check_mode = check_mode

    def _program(self):
        """The first word of the command, where it is installed."""
        words = shlex.split(self.module.params["validate"] or "")
        return self.module.get_bin_path(words[0], opt_dirs=["/usr/local/bin"]) if words else None

    def words(self, text):
        """What a command says of the staged file, said of the file itself."""
        folder = os.path.dirname(self.staged)
        said = text.replace(folder, os.path.dirname(self.path))
        return "\n".join(line for line in said.strip().splitlines() if line)

    def check(self):
        """Ends the module where the file is wrong."""
        if self.program is None:
            if self.module.params["validate"] and not self.module.check_mode:
                self.module.fail_json(msg=f"{self.path}: cannot be checked: {self._first()} is not installed")
            return
        command = [word.replace("%s", self.staged) for word in shlex.split(self.module.params["validate"])]
        command[0] = self.program
        code, _unused, said = self.module.run_command(command)
        if code not in self.module.params["valid_codes"]:
            self.module.fail_json(msg="refused, and nothing is changed:\n" + self.words(said), rc=code)
        for line in self.words(said).splitlines():
            if line.startswith("logknock: warning: "):
                self.module.warn(line[len("logknock: ") :])

    def _state(self, unit):
        return self.module.run_command(["systemctl", "is-active", unit])[1].strip()

    def _first(self):
        return shlex.split(self.module.params["validate"])[0]

    def compare_rules(self):
        """Ask `logknock rules diff` about the file that is to come. Its exit code is 1 where anything differs."""
        if self.module.params["rules"] == "keep" or self.program is None:
            return
        if not self.module.check_mode and self._state(UNIT) in ("active", "activating"):
            words = "rules wait to be confirmed on this host: `logknock rules confirm`, or wait for their end"
            self.module.fail_json(msg=words + "; nothing is changed")
        code, out, said = self.module.run_command([self.program, "rules", "diff", "--json", "-c", self.staged])
        if code not in (0, 1):
            self.module.fail_json(msg="nothing is changed:\n" + self.words(said), rc=code)
        self.differs = code == 1
        self.changes = json.loads(out)["elements"]

    def diff(self):
        """What --diff shows: the file, then the sets of the rules, without a secret."""
        before, after = shown(self.before or "", self.text)
        found = [{"before": before, "after": after, "before_header": self.path, "after_header": self.path}]
        lines = ([], [])
        for name in sorted(self.changes):
            change = self.changes[name]
            for side, kind in enumerate(("removed", "added")):
                if name in SECRET_SETS and change[kind]:
                    lines[side].append(f"{name}: {len(change[kind])} elements (hidden{', others' if side else ''})")
                elif change[kind]:
                    lines[side].extend(f"{name}: {element}" for element in change[kind])
        if self.differs:
            texts = ["".join(line + "\n" for line in side) for side in lines]
            if texts[0] == texts[1]:
                texts[1] += "other rules\n"
            header = "the rules that are loaded"
            found.append({"before": texts[0], "after": texts[1], "before_header": header, "after_header": header})
        return found

    def write(self):
        """Put the staged file in its place at once and whole; what was there goes to `previous`."""
        folder, name = os.path.split(self.path)
        for path, text in ((self.previous, self.before or ""), (self.path, self.text)):
            descriptor, temporary = tempfile.mkstemp(prefix="." + name, dir=folder)
            with os.fdopen(descriptor, "wb") as file:
                file.write(text.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
            self._own(temporary)
            os.replace(temporary, path)

    def restore(self):
        """The file from before is back."""
        if self.before is None:
            os.replace(self.path, self.path + ".unconfirmed")
            os.unlink(self.previous)
        else:
            os.replace(self.previous, self.path)

    def settle(self):
        """The file stays."""
        if os.path.exists(self.previous):
            os.unlink(self.previous)

    def apply(self):
        """Load the rules for good; ends the module where they are refused."""
        code, _unused, said = self.module.run_command([self.program, "rules", "apply", "-c", self.path])
        if code:
            if self.changed:
                self.restore()
            self.module.fail_json(msg="the rules are refused, and nothing is changed:\n" + self.words(said), rc=code)

    def try_out(self):
        """Load the rules on trial, and come back when they are loaded; ends the module where they are refused."""
        active = self._state("logknock.service")
        output = os.path.join(self.module.tmpdir, "trial")
        with open(output, "wb"):
            os.chmod(output, 0o600)
        command = ["systemd-run", "--quiet", "--collect", "--unit=" + UNIT]
        command.append("--description=Undoing of the rules of logknock, unless they are confirmed")
        command += [f"--property={stream}=append:{output}" for stream in ("StandardOutput", "StandardError")]
        seconds = str(self.module.params["confirm"])
        arguments = [self.program, self.path, seconds, self.previous if self.changed else "", active]
        # Of a unit's words systemd replaces what looks like a variable: $$ is a $ (systemd.service(5)).
        script = [word.replace("$", "$$") for word in ["/bin/sh", "-c", TRIAL, "sh", *arguments]]
        code, _unused, said = self.module.run_command([*command, "--", *script])
        if code:
            if self.changed:
                self.restore()
            self.module.fail_json(msg="no trial can be started, and nothing is changed:\n" + self.words(said), rc=code)
        self._wait(output)

    def _wait(self, output):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with open(output, "rb") as file:
                lines = file.read().decode("utf-8", "replace").splitlines()
            if any(line.startswith(LOADED) for line in lines):
                return
            if lines and lines[-1].startswith("exit "):
                said = self.words("\n".join(lines[:-1]))
                self.module.fail_json(msg="the rules are refused, and all is as before:\n" + said)
            time.sleep(0.05)
        self.module.fail_json(msg=f"the rules are not loaded after {PATIENCE:.0f} s: see journalctl -u {UNIT}")


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "content": {"type": "str", "required": True, "no_log": True},
            "validate": {"type": "str"},
            "valid_codes": {"type": "list", "elements": "int", "default": [0]},
            "rules": {"type": "str", "choices": ["keep", "apply", "trial"], "default": "keep"},
            "confirm": {"type": "int", "default": 60},
        },
        add_file_common_args=True,
        supports_check_mode=True,
    )
    module.run_command_environ_update = {"LC_ALL": "C.UTF-8", "NO_COLOR": "1"}
    made = Configuration(module)
    try:
        made.check()
        made.compare_rules()
        on_trial = False
        attributes = module.load_file_common_arguments(module.params)
        if not module.check_mode and made.changed:
            made.write()
        # Of a file that is not there yet in check mode there is nothing to compare.
        owned = made.changed or module.set_fs_attributes_if_different(attributes, False)
        if not module.check_mode:
            if made.differs and module.params["rules"] == "trial":
                made.try_out()
                on_trial = True
            elif made.differs:
                made.apply()
            if not on_trial:
                made.settle()
    finally:
        shutil.rmtree(os.path.dirname(made.staged), ignore_errors=True)
    module.exit_json(
        changed=bool(owned or made.differs),
        file_changed=made.changed,
        rules_differ=made.differs,
        on_trial=on_trial,
        diff=made.diff(),
    )


if __name__ == "__main__":
    main()
