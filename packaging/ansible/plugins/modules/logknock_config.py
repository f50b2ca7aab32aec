#!/usr/bin/python
# MIT License (see LICENSE or https://opensource.org/license/mit)
"""Writes a file of secrets for logknock, after trying it, and loads the firewall rules that follow from it on trial.

Rule 1: what the command refuses is never written. Rule 2: no sequence and no knock port leaves the host, in a diff
least of all, nor in what a command says of the file. Rule 3: what is on trial undoes itself, rules and file alike, and
needs nobody's connection for it: what was there before is kept beside it (FILE.previous) with a script that puts it
back (FILE.undo), which runs when the trial's unit ends, however it ends, and by a unit of its own when the host starts.
"""

DOCUMENTATION = r"""
---
module: logknock_config
short_description: Write logknock's configuration, and load its rules on trial
version_added: 0.1.0
description:
  - Writes a TOML file that holds sequences, if C(validate) has nothing against it.
  - The file is tried under another name beside a view of the C(conf.d) and the C(clients) that it will have beside it,
    in check mode too.
  - The diff shows what changes by its keys. Sequences are never shown, only that they differ.
  - With I(rules=trial) the firewall rules that follow from the file are loaded by C(logknock rules apply --confirm) in
    a unit of systemd, C(logknock-trial.service). Unless somebody runs C(logknock rules confirm) in time, the
    rules from before come back, and the file from before with them, whatever has become of the connection. So they
    do where the host goes down in the middle of it, or the unit is killed.
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
  reload:
    description:
      - Whether a C(logknock.service) that runs is to go on with the file, and with what is in C(conf.d) and C(clients)
        beside it, if it has loaded older ones. Where it refuses a file that is not on trial, the file from before comes
        back.
    type: bool
    default: false
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
    reload: true
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
reloaded:
  description: Whether the service has gone on, or would, with another configuration.
  type: bool
  returned: always
on_trial:
  description: Whether rules wait to be confirmed.
  type: bool
  returned: always
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import tempfile
import time
from datetime import datetime

from ansible.module_utils.basic import AnsibleModule

try:
    import tomllib
except ImportError:  # Python 3.10 and older, on which logknock does not run
    tomllib = None

UNIT = "logknock-trial.service"
SERVICE = "logknock.service"

# What takes back, when the host starts, a file that was on trial when the host went down; wanted by the service.
UNITS = "/etc/systemd/system"
BOOT = "logknock-unconfirmed.service"

# Where systemd puts what else the service is configured by (systemd.exec(5)).
CREDENTIALS = {"/etc/logknock/logknock.toml": "/run/credentials/" + SERVICE}

# Loading takes a second at most; a machine that is busy with other things is given some more.
PATIENCE = 60.0

# What `logknock rules apply --confirm` says once the rules are loaded.
LOADED = "still reachable?"

# Keys whose values are secrets. Files of one-time sequences are named, and not read.
SECRET = ("sequence", "secret", "key", "key_base64", "hmac_key", "hmac_key_base64")

# Folders beside the file whose files count too.
NEIGHBOURS = ("conf.d", "clients")

# Elements that give away what to knock: only how many of them change is told.
SECRET_SETS = ("watched", "traps")

# Seconds by which `logknock status` may be wrong about when it was: it tells whole ones.
CLOCK = 1.0

# A service, as a sequence has it.
KNOCK = re.compile(r"\b\d+/[A-Za-z]+\b")

# What the trial's unit runs: the program, the configuration, the trial's length, what to do where nobody confirms, and
# a file for all that is said. What it runs at its end finds that done, or does it: the file may be gone by then.
KILLED = 'test ! -e "$0" || exec /bin/sh "$0" killed'
TRIAL = r"""
logknock=$1 config=$2 seconds=$3 undo=$4
exec >> "$5" 2>&1
"$logknock" rules apply -c "$config" --confirm "${seconds}s"
code=$?
if [ $code -eq 0 ]; then
  [ -z "$undo" ] || /bin/sh "$undo" forget
elif [ -n "$undo" ]; then
  /bin/sh "$undo" undone
fi
echo "exit $code"
"""

# FILE.undo. What it is called with: `undone`, the rules from before are back; `killed`, they need not be; `boot`, there
# are none yet, and no service; `restore`, nothing but the file is to come back; `forget`, the file is to stay.
# An empty FILE.previous: there was no file.
UNDO = r"""# Written by Ansible (logknock.logknock): takes back a configuration on trial that nobody has confirmed.
[ "$1" != forget ] || rm -f "$previous"
if [ -e "$previous" ]; then
  if [ -s "$previous" ]; then
    touch "$previous"
    mv -f "$previous" "$config"
  else
    mv -f "$config" "$config.unconfirmed"
    rm -f "$previous"
  fi
  if [ "$1" = killed ]; then
    if [ -e "$config" ]; then "$logknock" rules apply -c "$config"; else "$logknock" rules remove; fi
  fi
  case $1 in
    undone | killed) if [ "$active" = active ]; then systemctl reload $service; else systemctl stop $service; fi ;;
  esac
fi
rm -f "$units/$service.wants/$boot" "$units/$boot" "$0"
rmdir "$units/$service.wants" 2> /dev/null
true
"""

# Never while the trial goes on: /run is empty when the host starts.
BOOT_UNIT = """\
# Written by Ansible (logknock.logknock), for as long as a configuration is on trial.
[Unit]
Description=Undoing of a configuration of logknock that nobody has confirmed
DefaultDependencies=no
RequiresMountsFor=/etc /usr
After=local-fs.target
Before=logknock.service
ConditionPathExists=!/run/logknock-trial

[Service]
Type=oneshot
ExecStart=/bin/sh {} boot
"""
MARK = "/run/logknock-trial"


def quoted(word):
    """A word of a command as a unit has it (systemd.service(5))."""
    for special, plain in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        word = word.replace(special, plain)
    return f'"{word}"'


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


def leaves(value):
    """The texts and numbers in a value, whatever its shape."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [leaf for each in value for leaf in leaves(each)]
    return [str(value)]


def secrets(table):
    """All that is secret in a TOML document, the longest first: values, each service in them, and its port."""
    found = set()
    for key, value in table.items():
        if key in SECRET:
            for leaf in leaves(value):
                pieces = re.split(r"[\s,;]+", leaf)
                found.update([leaf, json.dumps(leaf)[1:-1], *pieces])
                if key == "sequence":
                    found.update(piece.partition("/")[0] for piece in pieces)
        elif isinstance(value, dict):
            found.update(secrets(value))
    return sorted(filter(None, found), key=len, reverse=True)


def hidden(text, content):
    """What a command says of a file with this content, without its secrets, nor knocks of the files beside it."""
    try:
        known = secrets(tomllib.loads(content)) if tomllib else []
        lines = text.splitlines()
    except ValueError:
        known, lines = [], [KNOCK.sub("(hidden)", line) for line in text.splitlines()]
    if known:
        pattern = re.compile("|".join(rf"(?<!\w){re.escape(each)}(?!\w)" for each in known))
        lines = [pattern.sub("(hidden)", line) for line in lines]
    return "\n".join(KNOCK.sub("(hidden)", line) if "sequence" in line else line for line in lines)


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
        self.undo = self.path + ".undo"
        self.text = module.params["content"]
        self._recover()
        self.before = self._read()
        self.staged = self._stage()
        self.program = self._program()
        self.differs = None  # whether the rules do, as far as that is known
        self.changes = {}

    @property
    def changed(self):
        """Whether the file is another one."""
        return self.before != self.text

    def _recover(self):
        """Take back what was on trial when the host or the trial's unit went down, and nothing has taken back yet."""
        if not os.path.exists(self.previous):
            return
        if self._state(UNIT) in ("active", "activating", "deactivating"):
            words = "rules wait to be confirmed on this host: `logknock rules confirm`, or wait for their end"
            self.module.fail_json(msg=words + "; nothing is changed")
        self.module.warn(f"{self.path}: an earlier play was broken off: what nobody has confirmed is taken back first")
        if self.module.check_mode:
            return
        if os.path.getsize(self.previous):
            os.utime(self.previous)  # newer than what the service has loaded
            os.replace(self.previous, self.path)
        else:
            if os.path.exists(self.path):
                os.replace(self.path, self.path + ".unconfirmed")
            os.unlink(self.previous)
        self.settle()

    def _read(self):
        try:
            with open(self.path, "rb") as file:
                return file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            return self.module.fail_json(msg=f"{self.path}: {error.strerror}")

    def _stage(self):
        """The new file in a place of its own, as its command will find it later: owner, mode and neighbours."""
        folder = tempfile.mkdtemp(dir=self.module.tmpdir)
        staged = os.path.join(folder, os.path.basename(self.path))
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(self.text.encode("utf-8"))
        for name in NEIGHBOURS:
            neighbour = os.path.join(os.path.dirname(self.path), name)
            if os.path.isdir(neighbour):
                os.symlink(neighbour, os.path.join(folder, name))
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
        said = hidden(text.replace(folder, os.path.dirname(self.path)), self.text)
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
        if not self.module.check_mode and self._state(UNIT) in ("active", "activating", "deactivating"):
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
        self._put(self.previous, self.before or "")
        if self.module.params["rules"] == "trial" and self.differs:
            self._arm()
        self._put(self.path, self.text)

    def _put(self, path, text):
        folder, name = os.path.split(path)
        descriptor, temporary = tempfile.mkstemp(prefix="." + name, dir=folder)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        if path in (self.path, self.previous):
            self._own(temporary)
        os.replace(temporary, path)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(descriptor)
        os.close(descriptor)

    def _arm(self):
        """From here on the file that is written undoes itself, when the host starts too."""
        with open(MARK, "wb"):
            pass
        known = {"config": self.path, "previous": self.previous, "logknock": self.program, "service": SERVICE}
        known.update(units=UNITS, boot=BOOT, active=self._state(SERVICE))
        lines = [f"{name}={shlex.quote(value)}\n" for name, value in known.items()]
        self._put(self.undo, "".join(lines) + UNDO)
        self._put(os.path.join(UNITS, BOOT), BOOT_UNIT.format(quoted(self.undo)))
        wanted = os.path.join(UNITS, SERVICE + ".wants")
        os.makedirs(wanted, 0o755, exist_ok=True)
        link = os.path.join(wanted, BOOT)
        if not os.path.lexists(link):
            os.symlink(os.path.join(UNITS, BOOT), link)

    def restore(self):
        """The file from before is back."""
        if self.before is None:
            os.replace(self.path, self.path + ".unconfirmed")
            os.unlink(self.previous)
        else:
            os.replace(self.previous, self.path)
        self.settle()

    def settle(self):
        """The file stays, and nothing waits to undo it."""
        if os.path.exists(self.previous):
            os.unlink(self.previous)
        if not os.path.exists(self.undo):
            return
        wanted = os.path.join(UNITS, SERVICE + ".wants")
        for path in (os.path.join(wanted, BOOT), os.path.join(UNITS, BOOT), self.undo):
            if os.path.lexists(path):
                os.unlink(path)
        with contextlib.suppress(OSError):  # it has what is somebody else's
            os.rmdir(wanted)

    def stale(self):
        """Whether the service runs with something older than what it would load now."""
        if not self.module.params["reload"] or self.program is None or self._state(SERVICE) != "active":
            return False
        if self.changed:
            return True
        out = self.module.run_command([self.program, "status", "--json", "-c", self.path])[1]
        try:
            loaded = datetime.fromisoformat(json.loads(out)["standing"]["loaded"]).timestamp()
        except (ValueError, KeyError, TypeError):
            return False  # it cannot be asked: whether it runs is another task's matter
        paths = [self.path]
        for neighbour in NEIGHBOURS:
            folder = os.path.join(os.path.dirname(self.path), neighbour)
            if os.path.isdir(folder):
                names = (name for name in os.listdir(folder) if name.endswith(".toml"))
                paths += [folder, *(os.path.join(folder, name) for name in names)]
        return max(map(os.path.getmtime, paths)) > loaded + CLOCK

    def reload(self, on_trial):
        """Have the service go on with the file; ends the module where it does not."""
        code, _unused, said = self.module.run_command([self.program, "reload", "-c", self.path])
        if not code:
            return
        words = "the service does not run with this configuration"
        if self.changed and not on_trial:
            self.restore()
            words += ", and the one from before is back"
            if self.differs and self.before is not None:
                self.module.run_command([self.program, "rules", "apply", "-c", self.path])
        self.module.fail_json(msg=f"{words}:\n{self.words(said)}", rc=code, on_trial=on_trial)

    def apply(self):
        """Load the rules for good; ends the module where they are refused."""
        code, _unused, said = self.module.run_command([self.program, "rules", "apply", "-c", self.path])
        if code:
            if self.changed:
                self.restore()
            self.module.fail_json(msg="the rules are refused, and nothing is changed:\n" + self.words(said), rc=code)

    def try_out(self):
        """Load the rules on trial, and come back when they are loaded; ends the module where they are refused."""
        output = os.path.join(self.module.tmpdir, "trial")
        with open(output, "wb"):
            os.chmod(output, 0o600)
        command = ["systemd-run", "--quiet", "--collect", "--unit=" + UNIT]
        command.append("--description=Undoing of the rules of logknock, unless they are confirmed")
        undo = self.undo if self.changed else ""
        if undo:
            command.append(f"--property=ExecStopPost=-/bin/sh -c {quoted(KILLED)} {quoted(undo)}")
        arguments = [self.program, self.path, str(self.module.params["confirm"]), undo, output]
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
            "reload": {"type": "bool", "default": False},
        },
        add_file_common_args=True,
        supports_check_mode=True,
    )
    module.run_command_environ_update = {"LC_ALL": "C.UTF-8", "NO_COLOR": "1"}
    credentials = CREDENTIALS.get(module.params["path"], "")
    if os.path.isdir(credentials) and not os.environ.get("CREDENTIALS_DIRECTORY"):
        module.run_command_environ_update["CREDENTIALS_DIRECTORY"] = credentials
    made = Configuration(module)
    try:
        made.check()
        made.compare_rules()
        on_trial, reloaded = False, made.stale()
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
            if reloaded:
                made.reload(on_trial)
            if not on_trial:
                made.settle()
    finally:
        shutil.rmtree(os.path.dirname(made.staged), ignore_errors=True)
    module.exit_json(
        changed=bool(owned or made.differs or reloaded),
        file_changed=made.changed,
        rules_differ=made.differs,
        reloaded=reloaded,
        on_trial=on_trial,
        diff=made.diff(),
    )


if __name__ == "__main__":
    main()
