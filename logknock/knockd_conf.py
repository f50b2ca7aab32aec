"""Reads knockd.conf as knockd 0.8 does, and writes it as a configuration of ours.

Rule 1: pure; text comes in, text and what is to be said of it go out.
Rule 2: what knockd refuses, and what it accepts without a word and takes for something else, is an error with its line;
all errors are found at once.
Rule 3: nothing is dropped in silence: each line of the original stands in a comment, and a door that cannot be said is
left as comments with the reason. Rule 4: nothing becomes more open, or open for longer, without a word on standard
error: what a door does not keep is left to do by hand; what holds for all doors (IPv6, each interface) is told.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import NamedTuple

from .config_values import WrongError
from .imported import BLANK, cited, comment, head, original, shortened, summed, toml_list, toml_string
from .knock import MAX_SEQUENCE, Service, parse_port
from .knockd_commands import Action, CannotSayError, Lookup, Rule, understand
from .packet import PROTOCOLS, TCP

# What may be read: a thousand doors take about 200 kB. More than this is something else named by mistake.
MAX_BYTES = 1 << 18

# knockd reads lines into a buffer of PATH_MAX: what is longer it takes for two lines, or more.
MAX_LINE = 4094

# knockd's defaults, in seconds, which differ from ours.
_SEQ_TIMEOUT = 25
_CMD_TIMEOUT = 10

# What our configuration takes, in seconds. A number of more digits than ten is no time.
_MAX_SEQ_TIMEOUT = 3_600
_MAX_TIMEOUT = 365 * 86_400
_MAX_DIGITS = 10

# knockd leaves a door open until it is closed, or for ever; ours always end. A working day, and the next knock is due.
_UNTIL_CLOSED = 86_400

# A door that only runs a command is as good as closed at once, so that each knock runs it.
_AT_ONCE = "1s"

# Stands for "every port", which a door cannot say: knockd's manual speaks of port 22 where it has such a command.
_EVERY_PORT = Service(TCP, 22)

# What a door's name may be (config.py), and how much of it stays where something is added to tell two doors apart.
_DOOR_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_MAX_NAME = 50
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")

_MAX_NAMED = 8  # how many doors a comment lists, so that it stays readable

_KEYS = {
    "SEQUENCE": "sequence",
    "ONE_TIME_SEQUENCES": "one_time_sequences",
    "TARGET": "target",
    "SEQ_TIMEOUT": "seq_timeout",
    "TIMEOUT": "seq_timeout",
    "START_COMMAND": "start_command",
    "COMMAND": "start_command",
    "START_COMMAND_6": "start_command_6",
    "COMMAND_6": "start_command_6",
    "STOP_COMMAND": "stop_command",
    "STOP_COMMAND_6": "stop_command_6",
    "CMD_TIMEOUT": "cmd_timeout",
    "TCPFLAGS": "tcpflags",
}
_OPTIONS = {
    "LOGFILE": "LogFile: logknock writes to standard error, which systemd puts into the journal.",
    "PIDFILE": "PidFile: none is needed: systemd knows the process.",
}
_INTERFACE = "Interface: a knock counts on whatever interface it comes in, if it is for this host"
_SYSLOG = "UseSyslog: logknock writes to standard error, which systemd puts into the journal."
_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg")


class Finding(NamedTuple):
    """Something that the operator has to hear of: the line, the section, what is the matter and what to do."""

    line: int
    section: str
    message: str
    hint: str = ""


class Imported(NamedTuple):
    """What became of a knockd.conf.

    toml: the configuration, empty if there are errors. doors: how many doors are in it. errors: what is wrong with the
    file. left: what is left to do by hand: doors that are comments only, and what others do not keep. told: what
    differs for every door of a kind.
    """

    toml: str
    doors: int
    errors: tuple[Finding, ...]
    left: tuple[Finding, ...]
    told: tuple[Finding, ...] = ()


def convert(text: str, shown: str, lookup: Lookup) -> Imported:
    """The configuration that says what the text of the file `shown` says.

    What is not UTF-8 in it comes in as Python's surrogate escapes. `lookup` finds a program by its name.
    """
    errors: list[Finding] = []
    sections = _sections(text, errors)
    if errors:
        return Imported("", 0, tuple(sorted(errors)), ())
    drafts = _settled([_draft(section, lookup) for section in sections if section.is_door])
    return _written(sections, drafts, shown)


# ---- the file as knockd reads it


class _Line(NamedTuple):
    number: int
    text: str


@dataclass(slots=True)
class _Section:
    """A section while it is read. `values` holds what counts of each key: the last that was said, but for tcpflags."""

    title: str
    line: int
    lines: list[_Line] = field(default_factory=list)
    values: dict[str, _Line] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)  # keys, those with a wrong value too
    said: list[str] = field(default_factory=list)  # what comments say of the options and of repeated keys
    told: list[Finding] = field(default_factory=list)  # what is said of them on standard error too
    sequence: tuple[Service, ...] = ()
    flags: dict[str, bool] = field(default_factory=dict)
    name: str = ""

    @property
    def shown(self) -> str:
        """The title as a message has it."""
        return shortened(self.title)

    @property
    def is_door(self) -> bool:
        return bool(self.line) and self.title != "options"


def _sections(text: str, errors: list[Finding]) -> list[_Section]:
    """The sections, the first of which is what stands before any; what is wrong is added to `errors`."""
    here = _Section("", 0)
    sections = [here]
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip(BLANK)
        if len(raw.encode(errors="surrogateescape")) > MAX_LINE:
            message = f"a line of more than {MAX_LINE} bytes, which knockd takes for several"
            errors.append(Finding(number, here.shown, message, "make it shorter"))
            continue
        if "\0" in raw:
            errors.append(Finding(number, here.shown, "a NUL byte, where knockd stops reading the line", "delete it"))
            continue
        if line[:1] == "[" and line[-1:] == "]":
            here = _Section(line[1:-1], number)
            sections.append(here)
            if not here.title:
                errors.append(Finding(number, "", "a section has no name", "[openSSH]"))
        if line:
            here.lines.append(_Line(number, raw.rstrip(BLANK)))
        if line and line[0] != "#" and here.line != number:
            try:
                _directive(here, _Line(number, line))
            except WrongError as error:
                errors.append(Finding(number, here.shown, str(error), error.hint))
    errors.extend(
        Finding(section.line, section.shown, "has no sequence", "knockd refuses it too: sequence = 7000,8000,9000")
        for section in sections
        if section.is_door and section.written.isdisjoint(("sequence", "one_time_sequences"))
    )
    _name(sections)
    return sections


def _directive(section: _Section, line: _Line) -> None:
    """Take in one `key = value`; raises WrongError."""
    written, sign, value = (part.strip(BLANK) for part in line.text.partition("="))
    key = written.upper() if written.isascii() else written
    if not section.line:
        raise WrongError("this stands before any section", "begin with [options], or with a door's [name]")
    if not sign:
        if key != "USESYSLOG":
            hint = "a comment begins with #" if line.text[0] == ";" else "write key = value"
            raise WrongError(f"{cited(line.text)} has no =", hint)
        section.said.append(_SYSLOG)
        return
    if not section.is_door:
        if key == "INTERFACE":
            hint = 'target = ["192.0.2.1"] limits a door to packets for that address of this host'
            section.told.append(Finding(line.number, section.shown, _INTERFACE, hint))
            return
        if key not in _OPTIONS:
            hint = (
                "UseSyslog takes no value"
                if key == "USESYSLOG"
                else "known here: UseSyslog, LogFile, PidFile, Interface"
            )
            raise WrongError(f"{cited(written)} is no key of [options]", hint)
        section.said.append(_OPTIONS[key])
        return
    if key not in _KEYS:
        known = ", ".join(dict.fromkeys(_KEYS.values()))
        raise WrongError(f"{cited(written)} is no key of a door", f"known here: {known}")
    name = _KEYS[key]
    section.written.add(name)
    _check_value(section, name, value)
    if name in section.values and name != "tcpflags":
        section.said.append(f"{name} is there more than once: the last counts, as it does for knockd.")
    section.values[name] = _Line(line.number, value)


def _check_value(section: _Section, key: str, value: str) -> None:
    if key == "sequence":
        section.sequence = _sequence(value)
    elif key in ("seq_timeout", "cmd_timeout"):
        _seconds(value, may_be_none=key == "cmd_timeout")
    elif key == "tcpflags":
        section.flags |= _tcp_flags(value)
    elif key in ("one_time_sequences", "target") and not value:
        raise WrongError(f"{key} is empty", "write it, or delete the line")


def _sequence(value: str) -> tuple[Service, ...]:
    entries = value.split(",")
    if len(entries) > MAX_SEQUENCE:
        raise WrongError(f"{len(entries)} knocks, and {MAX_SEQUENCE} are the most")
    return tuple(_knock(entry.strip(BLANK)) for entry in entries)


def _knock(entry: str) -> Service:
    """`7000`, `7000:tcp` or `7000:UDP`. knockd reads a port with atoi(), which takes anything for a number."""
    port, sign, protocol = (part.strip(BLANK) for part in entry.partition(":"))
    if not port:
        raise WrongError(
            "an entry of the sequence is empty, and knockd takes it for port 0", "is there a comma too much?"
        )
    proto = PROTOCOLS.get(protocol.lower() if sign and protocol.isascii() else "" if sign else "tcp")
    if proto is None:
        raise WrongError(f"{cited(entry)}: {cited(protocol)} is no protocol", "tcp or udp")
    try:
        return Service(proto, parse_port(port, port))
    except ValueError:
        meant = _atoi(port)
        taken = f", and knockd takes it for port {meant % 65_536}" if meant <= 65_535 else ""
        raise WrongError(f"{cited(port)} is no port (1-65535){taken}", "7000, or 7000:udp") from None


def _atoi(text: str) -> int:
    """What C makes of a text as a number."""
    match = re.match(r"[+-]?[0-9]{1,18}", text)
    return int(match[0]) if match else 0


def _seconds(value: str, *, may_be_none: bool) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS):
        taken = f": knockd takes it for {_atoi(value)}" if len(value) <= _MAX_DIGITS else ""
        hint = "a whole number, without a unit, and with nothing behind it"
        raise WrongError(f"{cited(value)} is no number of seconds{taken}", hint)
    if not (int(value) or may_be_none):
        raise WrongError("no time is left for a sequence", "a number of seconds, 1 or more")
    return int(value)


def _tcp_flags(value: str) -> dict[str, bool]:
    flags = {}
    for word in value.split(","):
        name = word.removeprefix("!").lower()
        if not word.isascii() or name not in _FLAGS:
            hint = "no blank beside the comma" if name.strip(BLANK) in _FLAGS else f"the flags are {', '.join(_FLAGS)}"
            raise WrongError(f"{cited(word)} is no TCP flag", hint)
        flags[name] = not word.startswith("!")
    return flags


def _name(sections: list[_Section]) -> None:
    """Give each door a name of its own that a door may have."""
    titles = Counter(section.title for section in sections)
    taken = {section.title for section in sections}
    numbers: dict[str, int] = defaultdict(lambda: 1)
    seen = set()
    for section in sections:
        if not section.is_door:
            continue
        base = section.title
        if not _DOOR_NAME.fullmatch(base):
            base = _NOT_IN_NAMES.sub("-", base).lstrip("._-").rstrip("-")[:_MAX_NAME] or "door"
        name = base
        while name in seen or (name != section.title and name in taken):
            numbers[base] += 1
            name = f"{base[:_MAX_NAME]}-{numbers[base]}"
        seen.add(name)
        section.name = name
        if name != section.title:
            twice = titles[section.title] > 1 and base == section.title
            why = (
                "two sections of one name are two doors" if twice else "the section's name is none that a door may have"
            )
            section.said.append(f"{name}: {why}.")


# ---- a section as a door


class _KeptError(Exception):
    """Why a door cannot be said."""

    def __init__(self, line: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.line = line
        self.message = message
        self.hint = hint


_Same = frozenset[tuple[object, ...]]
_NOTHING: tuple[_Same, _Same] = (frozenset(), frozenset())


@dataclass(frozen=True, slots=True)
class _Draft:
    """A door of ours. `opened` and `closed` are rules, for IPv4 and for IPv6 knockers."""

    section: _Section
    keys: dict[str, str] = field(default_factory=dict)  # values as TOML writes them
    notes: tuple[str, ...] = ()
    opens: tuple[Service, ...] = ()
    opened: tuple[_Same, _Same] = _NOTHING
    closed: tuple[_Same, _Same] = _NOTHING
    kept: Finding | None = None  # why it is comments only
    left: tuple[Finding, ...] = ()  # what it does not keep
    told: tuple[Finding, ...] = ()  # what differs for every door of its kind


def _draft(section: _Section, lookup: Lookup) -> _Draft:
    """The door, as far as its own section tells."""
    draft = _Draft(section, notes=tuple(dict.fromkeys(section.said)))
    try:
        return _acts(_listens(draft), lookup)
    except _KeptError as error:
        return _keep(draft, error.line, error.message, error.hint)


def _keep(draft: _Draft, line: int, message: str, hint: str = "") -> _Draft:
    finding = Finding(line, draft.section.shown, message, hint)
    return replace(draft, keys={}, opens=(), opened=_NOTHING, closed=_NOTHING, kept=finding, left=(), told=())


def _listens(draft: _Draft) -> _Draft:
    """The keys that say what is a knock."""
    section, values = draft.section, draft.section.values
    keys: dict[str, str] = {}
    notes = list(draft.notes)
    if path := values.get("one_time_sequences"):
        if "sequence" in values:
            raise _KeptError(path.number, "it has a sequence and one_time_sequences, and a door has one of them")
        if path.text[0] != "/" or not path.text.isprintable():
            raise _KeptError(path.number, "one_time_sequences: this is no absolute path", "begin it with /")
        keys["onetime"] = toml_list([path.text])
        notes.append(
            "onetime: used lines begin with #, and stay comments; the file is not written to any more (which sequences"
            " are used stands in the state directory), and only root may be able to read it."
        )
    else:
        keys["sequence"] = toml_list(section.sequence)
    if target := values.get("target"):
        keys["target"] = toml_list([_address(target)])
        notes.append("target: it must be an address of this host: what is forwarded is no knock.")
    seconds = int(values["seq_timeout"].text) if "seq_timeout" in values else _SEQ_TIMEOUT
    if seconds > _MAX_SEQ_TIMEOUT:
        hint = f"{_MAX_SEQ_TIMEOUT} seconds are the most"
        raise _KeptError(values["seq_timeout"].number, f"seq_timeout: {seconds} s are too long", hint)
    if "seq_timeout" not in values:
        notes.append(f"seq_timeout: {_SEQ_TIMEOUT} s, knockd's default; ours is shorter.")
    keys["seq_timeout"] = toml_string(_duration(seconds))
    if path or any(knock.proto == TCP for knock in section.sequence):
        flags, said = _flags(section.flags)
        notes.append(said)
        if section.flags:
            keys["tcp_flags"] = toml_string(flags)
    return replace(draft, keys=keys, notes=tuple(note for note in notes if note))


def _address(target: _Line) -> str:
    try:
        address = ip_address(target.text)
    except ValueError:
        raise _KeptError(target.number, f"target: {cited(target.text)} is no address", "write the address") from None
    if "%" in target.text:
        raise _KeptError(
            target.number, "target: an address with a zone", "write the address without what begins with %"
        )
    return str(address)


def _flags(flags: dict[str, bool]) -> tuple[str, str]:
    """Our tcp_flags, and what differs."""
    if not flags:
        return (
            "",
            'tcp_flags: knockd takes any TCP packet for a knock; here, the default, "syn,!ack": one that connects.',
        )
    if flags == {"syn": True}:
        return (
            "syn,!ack",
            "tcp_flags: knockd's syn also takes SYN with ACK, which is an answer; meant is one that connects.",
        )
    written = ",".join(name if wanted else f"!{name}" for name, wanted in flags.items())
    if any(wanted != (name == "syn") for name, wanted in flags.items()):
        return written, "tcp_flags: as it was; a client that just connects sends SYN alone, which is no knock here."
    return written, ""


class _Both(NamedTuple):
    """What is done for IPv4 and for IPv6 knockers."""

    four: Action
    six: Action
    line: int

    @property
    def rules(self) -> tuple[Rule, ...]:
        return self.four.rules + self.six.rules

    @property
    def same(self) -> tuple[_Same, _Same]:
        return frozenset(rule.same for rule in self.four.rules), frozenset(rule.same for rule in self.six.rules)


def _acts(draft: _Draft, lookup: Lookup) -> _Draft:
    """The keys that say what the door does."""
    values = draft.section.values
    start, stop = _commands(draft.section, "start", lookup), _commands(draft.section, "stop", lookup)
    if not start.four and not start.six:
        what = (
            "a stop_command alone, which knockd does not run"
            if stop.four or stop.six
            else "no command: it does nothing"
        )
        raise _KeptError(stop.line or draft.section.line, what, "what is the door to do?")
    if "cmd_timeout" in values and not ("stop_command" in values or "stop_command_6" in values):
        draft = replace(draft, notes=(*draft.notes, "cmd_timeout: without a stop_command it never counted."))
    if not start.rules:
        return _runs(draft, start, stop)
    if not (start.four.rules and start.six.rules):
        message = "it does not do the same for IPv4 and for IPv6 knockers, and what a door opens is open for both"
        raise _KeptError(start.line, message, "write two doors with different knocks, or the same for both")
    verbs = {rule.adds for rule in start.rules}
    if len(verbs) > 1:
        raise _KeptError(start.line, "it both adds and deletes rules", "write two doors")
    return _opens(draft, start, stop) if verbs == {True} else _closes(draft, start, stop)


def _commands(section: _Section, which: str, lookup: Lookup) -> _Both:
    four, six = section.values.get(f"{which}_command"), section.values.get(f"{which}_command_6")
    done = {"": Action()}
    for line in (four, six):
        if line is not None and line.text not in done:
            key = f"{which}_command" + ("_6" if line is six else "")
            try:
                done[line.text] = understand(line.text, lookup)
            except CannotSayError as error:
                raise _KeptError(line.number, f"{key}: {error}", error.hint) from None
    first = done[four.text] if four else Action()
    line = four or six
    return _Both(first, first if six is None else done[six.text], line.number if line else 0)


def _programs(draft: _Draft, start: _Both, stop: _Both) -> _Draft:
    """The door with the programs that it runs."""
    keys, told = dict(draft.keys), draft.told
    # knockd runs no stop_command for one whose start_command is empty.
    closes = stop.four.argv if start.four else (), stop.six.argv if start.six else ()
    for key, line, four, six in (
        ("on_open", start.line, start.four.argv, start.six.argv),
        ("on_close", stop.line, *closes),
    ):
        if four:
            keys[key] = toml_list(four)
        if six != four:
            keys[f"{key}_6"] = toml_list(six)
        for argv in dict.fromkeys(filter(None, (four, six))):
            message = f"{cited(' '.join(argv))} runs without privileges and without a shell: does it need root?"
            told += (Finding(line, draft.section.shown, message),)
    return replace(draft, keys=keys, told=told)


def _runs(draft: _Draft, start: _Both, stop: _Both) -> _Draft:
    """A door that runs programs."""
    if stop.rules:
        message = "stop_command is of the firewall, and start_command is not"
        raise _KeptError(stop.line, message, "commands run without capabilities, so it would fail")
    draft = _programs(draft, start, stop)
    closes = (start.four and stop.four) or (start.six and stop.six)
    lasts, notes = _timeout(draft.section, closes=bool(closes))
    return _at_once(draft) if not lasts else _noted(draft, *notes, timeout=toml_string(lasts))


def _at_once(draft: _Draft) -> _Draft:
    note = f"timeout: nothing is to be closed; {_AT_ONCE}, so that each knock runs the command."
    return _noted(draft, note, timeout=toml_string(_AT_ONCE))


def _noted(draft: _Draft, *notes: str, **keys: str) -> _Draft:
    return replace(draft, keys={**draft.keys, **keys}, notes=(*draft.notes, *notes))


def _timeout(section: _Section, *, closes: bool) -> tuple[str, tuple[str, ...]]:
    """How long the door stays open, empty if nothing closes it; and what differs."""
    if not closes:
        return "", ()
    line = section.values.get("cmd_timeout")
    seconds = int(line.text) if line else _CMD_TIMEOUT
    if line and seconds > _MAX_TIMEOUT:
        raise _KeptError(line.number, f"cmd_timeout: {seconds} s are too long", f"{_MAX_TIMEOUT} are the most")
    if not line:
        return _duration(seconds), (f"timeout: {seconds} s, knockd's default; ours is longer.",)
    if not seconds:
        return _AT_ONCE, (f"timeout: knockd closes it at once; {_AT_ONCE} is the least here.",)
    return _duration(seconds), ()


def _opens(draft: _Draft, start: _Both, stop: _Both) -> _Draft:
    """A door that lets the knocker in, and closes by itself."""
    _check_opening(start, stop)
    section, rules = draft.section, start.rules
    services, every = _opened_services(start.four.rules)
    sets = tuple(dict.fromkeys(rule.set_name for rule in rules if rule.set_name))
    left = dict.fromkeys(pair for rule in rules for pair in rule.left)
    if every:
        services = tuple(dict.fromkeys((_EVERY_PORT, *services)))
        message = f"it opens every TCP port, which a door cannot say: {_EVERY_PORT} is what is opened here"
        left[message, "add to opens what else is to be opened"] = None
    if services and sets:
        raise _KeptError(start.line, "it accepts some and fills a set too", "write two doors of the same sequence")
    keys = {"opens": toml_list(services)} if services else {"sets": toml_list(sets)}
    draft = _programs(replace(draft, keys=draft.keys | keys), start, stop)
    lasts, notes = _open_time(section, rules, closes=bool(stop.four or stop.six))
    if start.four.argv or start.six.argv:
        notes += ("on_open: it runs when the door opens, and not again while it is open.",)
    told = draft.told
    if (families := {rule.family for rule in rules}) in ({4}, {6}):
        other = "IPv6" if families == {4} else "IPv4"
        message = f"{other} knockers get in too: knockd's command failed for their addresses"
        told += (Finding(start.line, section.shown, message),)
    notes = (*dict.fromkeys(note for rule in rules for note in rule.notes), *notes)
    return replace(
        _noted(draft, *notes, timeout=toml_string(lasts)),
        opens=services,
        opened=start.same,
        left=tuple(Finding(start.line, section.shown, *pair) for pair in left),
        told=told,
    )


def _check_opening(start: _Both, stop: _Both) -> None:
    """Whether it opens the same for both families, and closes just that; raises _KeptError."""
    of_four, of_six = _opened_services(start.four.rules), _opened_services(start.six.rules)
    if (set(of_four[0]), of_four[1]) != (set(of_six[0]), of_six[1]):
        message = "it does not open the same for IPv4 and for IPv6 knockers, and what a door opens is open for both"
        raise _KeptError(start.line, message, "write two doors with different knocks, or the same for both")
    if (stop.four or stop.six) and stop.same != start.same:
        raise _KeptError(stop.line, "stop_command does not undo what start_command does", "what is it to close?")
    if any(rule.adds for rule in stop.rules):
        raise _KeptError(stop.line, "stop_command opens what start_command opens", "what is it to close?")


def _opened_services(rules: tuple[Rule, ...]) -> tuple[tuple[Service, ...], bool]:
    """The services, and whether some rule opens every port."""
    services = tuple(dict.fromkeys(service for rule in rules for service in rule.services))
    return services, any(not rule.services and not rule.set_name for rule in rules)


def _open_time(section: _Section, rules: tuple[Rule, ...], *, closes: bool) -> tuple[str, tuple[str, ...]]:
    own = [rule.seconds for rule in rules if rule.seconds]
    if own and (not closes or min(own) <= int(section.values.get("cmd_timeout", _Line(0, str(_CMD_TIMEOUT))).text)):
        if min(own) > _MAX_TIMEOUT:
            raise _KeptError(section.line, f"its timeout of {min(own)} s is too long", f"{_MAX_TIMEOUT} are the most")
        return _duration(min(own)), ()
    lasts, notes = _timeout(section, closes=closes)
    if lasts:
        return lasts, notes
    # A set may have a timeout of its own, which is not known here: nothing shorter than this one is likely.
    seconds = _CMD_TIMEOUT if any(rule.set_name for rule in rules) else _UNTIL_CLOSED
    return _duration(seconds), (
        f"timeout: nothing says when knockd closes it, and a door here always ends: {_duration(seconds)}. It limits new"
        " connections only, those that are made live on.",
    )


def _closes(draft: _Draft, start: _Both, stop: _Both) -> _Draft:
    """A door that closes others: which, only all of them together show."""
    if stop.four or stop.six:
        raise _KeptError(stop.line, "it closes something for a while, which a door cannot say")
    if start.four.argv or start.six.argv:
        draft = _at_once(_programs(draft, start, stop))
    return replace(draft, closed=start.same)


# ---- doors beside doors


def _settled(drafts: list[_Draft]) -> list[_Draft]:
    """The doors with what only all of them together show: what closes what, and who knocks at what is guarded."""
    guards = {service: draft.section.title for draft in reversed(drafts) for service in draft.opens}
    drafts = [_unguarded(draft, guards) for draft in drafts]
    openers: dict[tuple[object, ...], list[_Draft]] = defaultdict(list)
    for draft in drafts:
        for rule in draft.opened[0] | draft.opened[1]:
            openers[rule].append(draft)
    return [_closing(draft, openers) if draft.closed[0] or draft.closed[1] else draft for draft in drafts]


def _unguarded(draft: _Draft, guards: dict[Service, str]) -> _Draft:
    if draft.kept is None:
        for knock in draft.section.sequence:
            if knock in guards:
                line = draft.section.values["sequence"].number
                message = f"it knocks on {knock}, which {cited(guards[knock])} opens: a packet to it is no knock here"
                return _keep(draft, line, message, "knock on a port that no door opens")
    return draft


def _closing(draft: _Draft, openers: dict[tuple[object, ...], list[_Draft]]) -> _Draft:
    """The door with the names of those that it closes: all that they open is what it deletes."""
    closed = draft.closed[0] | draft.closed[1]
    found = {opener.section.name: opener for rule in closed for opener in openers.get(rule, ())}
    those = sorted(found.values(), key=lambda opener: opener.section.line)
    names = [opener.section.name for opener in those]
    first = draft.section.values.get("start_command") or draft.section.values["start_command_6"]
    for opener in those:
        if not any(there <= closed for there in opener.opened):
            message = f"it closes a part of what {cited(opener.section.title)} opens, and a door closes as a whole"
            return _keep(draft, first.number, message, "is all of it to be closed? name the door in closes")
    covered = {rule for opener in those for there in opener.opened for rule in there}
    if not names or not (draft.closed[0] <= covered or draft.closed[1] <= covered):
        hint = "is there an opening door of the same rule, and could it be converted?"
        return _keep(draft, first.number, "no door here opens just what it closes", hint)
    note = f"closes: what it deletes is what {', '.join(names[:_MAX_NAMED])} opens."
    return _noted(draft, note, closes=toml_list(names))


# ---- TOML


def _duration(seconds: int) -> str:
    """As nft writes it: `1h30m`."""
    parts = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        if seconds >= size:
            parts.append(f"{seconds // size}{unit}")
            seconds %= size
    return "".join(parts)


def _written(sections: list[_Section], drafts: list[_Draft], shown: str) -> Imported:
    by_line = {draft.section.line: draft for draft in drafts}
    left = [finding for draft in drafts for finding in (draft.kept, *draft.left) if finding]
    told = [finding for section in sections for finding in section.told]
    told += [finding for draft in drafts for finding in draft.told]
    services = (service for draft in drafts for service in draft.opens)
    lines = list(head("import-knockd", shown, services, "knockers"))
    for section in sections:
        if section.lines:
            lines += ["", *(original(line.text) for line in section.lines)]
        if draft := by_line.get(section.line):
            lines += _door(draft)
        else:
            said = (*section.said, *(f"{finding.message}." for finding in section.told))
            lines += [line for text in dict.fromkeys(said) for line in comment(text)]
    written = sum(draft.kept is None for draft in drafts)
    return Imported("\n".join(lines) + "\n", written, (), tuple(left), tuple(sorted(summed(told))))


def _door(draft: _Draft) -> Iterator[str]:
    what = "NOT CONVERTED" if draft.kept else "LEFT TO YOU"
    for finding in [draft.kept] if draft.kept else draft.left:
        hint = f" ({finding.hint})" if finding.hint else ""
        yield from comment(f"{what}: line {finding.line}: {finding.message}{hint}")
    if draft.kept is None:
        for note in (*draft.notes, *(finding.message for finding in draft.told)):
            yield from comment(note if note[-1] in ".?" else f"{note}.")
        name = draft.section.name
        yield f"[doors.{toml_string(name) if '.' in name else name}]"
        for key, value in draft.keys.items():
            yield f"{key} = {value}"
