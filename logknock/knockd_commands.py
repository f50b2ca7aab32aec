"""What a command of knockd.conf does: rules of the firewall that a door can stand for, and a program to run.

Rule 1: pure; text comes in, rules and an argv go out, and nothing is run or looked for here.
Rule 2: what is not understood to the last word raises CannotSayError with the reason: a restriction that is dropped
gives more access than was meant, and a shell's sign taken for a letter runs something else. The restrictions that lie
outside of a command (a chain, a zone, a set) come out as what is left to do by hand.
Rule 3: a command and the one that undoes it have rules of the same `same`.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from .knock import Service, parse_port
from .packet import TCP, UDP

# What knockd replaces, and what our commands do instead.
ADDRESS = "%IP%"
OURS = "{src}"

# A door names each service; ranges of more ports than this are for a firewall of one's own, and a set.
MAX_SERVICES = 64

# What rules are written with instead of numbers; a larger table would be /etc/services, which differs between hosts.
# fmt: off
_NAMES = {
    "ssh": 22, "ftp": 21, "telnet": 23, "smtp": 25, "smtps": 465, "submission": 587, "domain": 53, "dns": 53,
    "http": 80, "https": 443, "pop3": 110, "pop3s": 995, "imap": 143, "imaps": 993, "ldap": 389, "mysql": 3306,
    "postgresql": 5432, "openvpn": 1194, "wireguard": 51820,
}
# fmt: on
# The protocols of a name, where they are not TCP alone: in Debian's /etc/services, as ufw reads it, and for firewalld.
_IN_SERVICES = {**dict.fromkeys(("domain", "https", "ldap", "openvpn"), (TCP, UDP)), "wireguard": (UDP,)}
_IN_FIREWALLD = {**dict.fromkeys(("domain", "dns"), (TCP, UDP)), **dict.fromkeys(("openvpn", "wireguard"), (UDP,))}
_PROTOCOLS = {"tcp": TCP, "6": TCP, "udp": UDP, "17": UDP}

# Chains that see what is not for this host itself, or comes from it.
_OTHER_CHAINS = frozenset({"forward", "output", "prerouting", "postrouting", "docker-user"})

# What needs capabilities, which our commands do not have; an argv of it would fail at each knock.
# fmt: off
_PRIVILEGED = frozenset({
    "arptables", "brctl", "bridge", "conntrack", "csf", "doas", "ebtables", "ether-wake", "etherwake", "ferm",
    "halt", "ifconfig", "ifdown", "ifup", "init", "insmod", "ip", "ipset", "iptables-apply", "iptables-restore",
    "ip6tables-restore", "ipvsadm", "modprobe", "mount", "nmcli", "pkexec", "poweroff", "reboot", "route", "service",
    "shorewall", "shorewall6", "shutdown", "su", "sudo", "sysctl", "systemctl", "tc", "telinit", "umount", "wg",
    "wg-quick",
})
# fmt: on
_INIT_SCRIPTS = "/etc/init.d/"

# Programs that run another one, and what of their own may stand before it: options, numbers, times, variables.
_WRAPPERS = frozenset({"env", "ionice", "nice", "nohup", "setsid", "sudo", "timeout"})
_OF_WRAPPERS = re.compile(r"-.*|[0-9.]+[smhd]?|\w+=.*")
_SHELLS = frozenset({"sh", "bash", "dash", "ksh", "zsh", "busybox"})

_PRIVILEGES = "commands run without capabilities, so it would fail"
_EVERYBODY = f"it opens for everybody, not for {ADDRESS} alone"
_SCRIPT = "put the command into a script, and name that in the door"
_APART = "leave only the firewall's command here: what runs besides goes into on_open, and a condition cannot be said"


class CannotSayError(ValueError):
    """Why a command has no counterpart, in words for the operator, and what to do instead."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Rule(NamedTuple):
    """One rule, or one element of a set, for the knocker's address.

    services: empty, where there is no set either: every port. seconds: how long it lasts, if it ends by itself.
    same: what a rule and its deletion have in common. family: 4, 6, or 0 for both. notes: what differs, in words.
    left: restrictions that a door does not keep, and what to do about each.
    """

    adds: bool
    services: tuple[Service, ...]
    same: tuple[object, ...]
    family: int = 0
    set_name: str = ""
    seconds: int | None = None
    notes: tuple[str, ...] = ()
    left: tuple[tuple[str, str], ...] = ()


Argv = tuple[str, ...]


class Action(NamedTuple):
    """What a command does: change rules, run a program, or the one and then the other; false if it does nothing."""

    rules: tuple[Rule, ...] = ()
    argv: Argv = ()

    def __bool__(self) -> bool:
        return bool(self.rules or self.argv)


Lookup = Callable[[str], str | None]  # the path of a program, None if it is not there


def understand(text: str, lookup: Lookup) -> Action:
    """The command as rules of the firewall, or as an argv with `{src}` in it, or as both; raises CannotSayError."""
    try:
        return _understood(text, lookup)
    except CannotSayError as error:
        if error.hint == _SCRIPT and any(_base(word) in _FIREWALLS for word in re.split(r"[\s;&|()'\"`]+", text)):
            error.hint = _APART  # a script would have no capabilities either
        raise


def _understood(text: str, lookup: Lookup) -> Action:
    """Rules, then at most one program, then at most a `sleep` and what undoes the rules.

    A program before the rules may be a condition that they depend on, and is not understood.
    """
    commands = _split(text)
    if any(word.text == "--permanent" for words in commands for word in words):
        commands = [words for words in commands if [*map(_base, _peeled(words))] != ["firewall-cmd", "--reload"]]
    if not commands:
        raise CannotSayError("it is empty for a shell")
    rules: list[Rule] = []
    while commands and (rule := _recognised(commands[0])):
        rules.append(rule)
        commands = commands[1:]
    argv: Argv = ()
    if commands and not (rules and _pause(commands[0])):
        argv, commands = _argv(commands[0], lookup), commands[1:]
    return Action(_for_a_while(rules, commands) if commands else tuple(rules), argv)


def _pause(words: list["_Word"]) -> int:
    """The seconds of a `sleep`; 0 if it is none."""
    match = re.fullmatch(r"sleep ([0-9]{1,9})([smhd]?)", " ".join([_base(words[0].text), *(w.text for w in words[1:])]))
    return int(match[1]) * _TIMES[match[2]] if match else 0


def _for_a_while(rules: list[Rule], commands: list[list["_Word"]]) -> tuple[Rule, ...]:
    """The rules, which end with a `sleep`: all that follows on it undoes them."""
    seconds = _pause(commands[0])
    undone = [_recognised(words) for words in commands[1:]]
    if (
        not seconds
        or not all(rule.adds for rule in rules)
        or any(rule is None or rule.adds for rule in undone)
        or {rule.same for rule in rules} != {rule.same for rule in undone if rule}
    ):
        raise _needs_shell("a chain of commands")
    return tuple(rule._replace(seconds=min(seconds, rule.seconds or seconds)) for rule in rules)


def _recognised(words: list["_Word"]) -> Rule | None:
    """The rule of one command; None if its program is no firewall's."""
    texts = _peeled(words)
    if not texts or _base(texts[0]) not in _FIREWALLS:
        return None
    braces = "{}" if _base(texts[0]) == "nft" else ""
    if signs := "".join(word.special for word in words).strip(braces):
        raise CannotSayError(f"the shell would make something of {signs[0]!r}")
    return _FIREWALLS[_base(texts[0])](texts[1:])


def _peeled(words: list["_Word"]) -> list[str]:
    """The command without programs that only run it."""
    texts = [word.text for word in words]
    while texts and _base(texts[0]) in _WRAPPERS:
        texts = texts[1:]
        while texts and _OF_WRAPPERS.fullmatch(texts[0]):
            texts = texts[1:]
    return texts


def _argv(words: list["_Word"], lookup: Lookup) -> Argv:
    program = words[0].text
    for word in words:
        if word.special:
            raise _needs_shell(repr(word.special[0]))
        if OURS in word.text:
            raise CannotSayError(f"a literal {OURS} cannot be said: it becomes the address")
        if not word.text.isprintable():
            raise CannotSayError("it has characters that are not printable")
    for run in (program, *_peeled(words)[:1]):
        base = _base(run)
        if base in _PRIVILEGED or run.startswith(_INIT_SCRIPTS):
            hint = "wakeonlan does it without" if base.replace("-", "") == "etherwake" else ""
            raise CannotSayError(f"{base if base in _PRIVILEGED else run} needs privileges: {_PRIVILEGES}", hint)
        if base in _SHELLS and any(re.fullmatch("-[a-z]*c", word.text) for word in words[1:]):
            raise _needs_shell(f"{base} -c")
    path = program if program.startswith("/") else None if "/" in program else lookup(program)
    if path is None or ADDRESS in path:
        message = f"{program} is no absolute path" if "/" in program else f"there is no program {program} here"
        raise CannotSayError(message, "write the program's whole path")
    return (path, *(word.text.replace(ADDRESS, OURS) for word in words[1:]))


def _base(program: str) -> str:
    return program.rpartition("/")[2]


# ---- words


class _Word(NamedTuple):
    """A word as the shell would hand it over; `special` holds the signs in it that the shell might act on first."""

    text: str
    special: str


# What no argv has a word for, wherever it stands outside of quotes.
_SHELL_ONLY = frozenset("$`|<>()&")


def _needs_shell(what: str) -> CannotSayError:
    return CannotSayError(f"{what} needs a shell", _SCRIPT)


def _split(text: str) -> list[list[_Word]]:
    """The commands of a line, each as its words; raises CannotSayError for what only a shell can do."""
    for char in text:
        if (char < " " and char != "\t") or char == "\x7f":
            raise CannotSayError("it has a control character")
    commands: list[list[_Word]] = [[]]
    for token in _tokens(text):
        if token is None:
            commands.append([])
        else:
            commands[-1].append(token)
    if len(commands) > 1 and not commands[-1]:
        commands.pop()  # a `;` at the end
    if any(not words for words in commands[:-1]):
        raise CannotSayError("a command before ';' or '&&' is missing")
    return [words for words in commands if words]


_PLAIN = re.compile(r"[^\s'\"\\$`|<>()&;*?\[\]~{}!=#]+")


def _tokens(text: str) -> Iterator[_Word | None]:
    """Words, and None for each `;` or `&&`."""
    at, word, special, inside = 0, "", "", False
    first = True  # whether this word is the first of its command
    while at < len(text):
        if plain := _PLAIN.match(text, at):
            word, inside, at = word + plain[0], True, plain.end()
            continue
        char = text[at]
        at += 1
        if char in " \t" or char == ";" or (char == "&" and text[at : at + 1] == "&"):
            if inside:
                yield _Word(word, special)
                word, special, inside, first = "", "", False, False
            if char not in " \t":
                at += char == "&"
                first = True
                yield None
        elif char in "'\"":
            quoted, at = _quoted(text, at, char)
            word, inside = word + quoted, True
        elif char == "\\":
            if at == len(text):
                raise CannotSayError("it ends in a backslash: knockd knows no continued lines")
            word, inside, at = word + text[at], True, at + 1
        elif char in _SHELL_ONLY:
            raise _needs_shell(repr(char))
        elif char == "#" and not inside:
            break  # the shell's own comment
        else:
            # Only the signs that the shell acts on where they stand: `=` in a first word, `~` at a beginning.
            acts = first if char in "=!" else not inside if char == "~" else char in "*?[]{}"
            word, special, inside = word + char, special + (char if acts else ""), True
    if inside:
        yield _Word(word, special)


def _quoted(text: str, at: int, quote: str) -> tuple[str, int]:
    """What stands between quotes, and where it goes on behind them."""
    word = ""
    while at < len(text) and text[at] != quote:
        if quote == '"' and text[at] in "$`":
            raise _needs_shell(repr(text[at]))
        if quote == '"' and text[at] == "\\" and text[at + 1 : at + 2] in ("$", "`", '"', "\\"):
            at += 1
        word += text[at]
        at += 1
    if at == len(text):
        raise CannotSayError(f"a quote {quote} is not closed")
    return word, at + 1


# ---- ports and sources


def _ports(text: str) -> tuple[int, ...]:
    """`22`, `ssh`, `80,443`, `6000:6010` or `6000-6010` as ports."""
    found: list[int] = []
    for part in text.split(","):
        first, last = _port_range(part.strip().lower())
        if last - first >= MAX_SERVICES or len(found) + last - first >= MAX_SERVICES:
            message = f"{text} is more than {MAX_SERVICES} ports"
            raise CannotSayError(message, "let a rule of your own look into a set, and name that in the door")
        found.extend(range(first, last + 1))
    return tuple(dict.fromkeys(found))


def _port_range(text: str) -> tuple[int, int]:
    if text in _NAMES:
        return (_NAMES[text],) * 2
    low, sign, high = text.partition(":" if ":" in text else "-")
    try:
        first = parse_port(low, text)
        last = parse_port(high, text) if sign else first
    except ValueError as error:
        raise CannotSayError(f"its port: {error}") from None
    if last < first:
        raise CannotSayError(f"its ports {text} run backwards")
    return first, last


def _services(ports: tuple[int, ...], protocols: Iterable[int]) -> tuple[Service, ...]:
    return tuple(Service(proto, port) for proto in protocols for port in ports)


def _protocol(text: str) -> int:
    if text.lower() not in _PROTOCOLS:
        raise CannotSayError(f"its protocol {text} is not tcp or udp")
    return _PROTOCOLS[text.lower()]


def _check_source(source: str | None) -> None:
    """Whether this is the knocker's address, and no other and no network around it."""
    if source is None:
        raise CannotSayError(_EVERYBODY)
    if source not in (ADDRESS, f"{ADDRESS}/32", f"{ADDRESS}/128"):
        raise CannotSayError(f"its source {source} is not {ADDRESS}")


def _check_chain(chain: str) -> None:
    if chain.lower() in _OTHER_CHAINS:
        raise CannotSayError(f"chain {chain} is not about packets to this host, and a door is")


def _of_chain(chain: str) -> tuple[tuple[str, str], ...]:
    return () if chain.lower() in ("input", "ufw-user-input", "ufw6-user-input") else _not_kept(f"chain {chain}")


def _not_kept(place: str) -> tuple[tuple[str, str], ...]:
    return (
        (
            f"{place} is not kept: the door opens for whatever packets come for this host",
            f"let your own firewall accept these services in {place} only",
        ),
    )


def _blocking(*, adds: bool, knocker: bool) -> CannotSayError:
    """What a rule is that blocks, or the deletion of one."""
    if adds:
        return CannotSayError("it blocks and does not open")
    return CannotSayError("it takes a block away, and a door opens" if knocker else _EVERYBODY)


_ANY_PORT: tuple[Service, ...] = ()


# ---- iptables, ip6tables

# Spelling: (what it is, whether it takes a value). What is not here is not understood.
_IPTABLES: dict[str, tuple[str, bool]] = {
    **dict.fromkeys(("-A", "--append"), ("add", True)),
    **dict.fromkeys(("-I", "--insert"), ("insert", True)),
    **dict.fromkeys(("-D", "--delete"), ("delete", True)),
    **dict.fromkeys(("-t", "--table"), ("table", True)),
    **dict.fromkeys(("-s", "--source", "--src"), ("source", True)),
    **dict.fromkeys(("-p", "--protocol", "--proto"), ("protocol", True)),
    **dict.fromkeys(("-m", "--match"), ("match", True)),
    **dict.fromkeys(("--dport", "--dports", "--destination-port", "--destination-ports"), ("ports", True)),
    **dict.fromkeys(("--state", "--ctstate"), ("state", True)),
    **dict.fromkeys(("-j", "--jump"), ("jump", True)),
    "--comment": ("comment", True),
    "--syn": ("syn", False),
    **dict.fromkeys(("-v", "--verbose", "-n", "--numeric"), ("quiet", False)),
    **dict.fromkeys(("-w", "--wait"), ("wait", False)),
}
_MATCHES = frozenset({"tcp", "udp", "state", "conntrack", "multiport", "comment"})

# What such options do, for the reason: all of them narrow a rule.
_NARROWS = {
    **dict.fromkeys(("-i", "--in-interface"), "it counts on one interface only"),
    **dict.fromkeys(("-d", "--destination", "--dst"), "it counts for one destination only"),
    **dict.fromkeys(
        ("--sport", "--sports", "--source-port", "--source-ports"), "it counts from some source ports only"
    ),
    "!": "it is a negation",
}


def _iptables(family: int) -> Callable[[list[str]], Rule]:
    return lambda words: _iptables_rule(words, family)


def _iptables_rule(words: list[str], family: int) -> Rule:
    options = _iptables_options(words)
    verbs = [name for name in ("add", "insert", "delete") if name in options]
    if len(verbs) != 1:
        raise CannotSayError("it neither adds nor deletes a rule")
    chain = options[verbs[0]]
    if options.get("table", "filter") != "filter":
        raise CannotSayError(f"table {options['table']} is not about what may come in")
    _check_chain(chain)
    target = options.get("jump", "")
    if target in ("DROP", "REJECT", "TARPIT"):
        raise _blocking(adds=verbs[0] != "delete", knocker=ADDRESS in options.get("source", ""))
    if target != "ACCEPT":
        raise CannotSayError(f"its target is {target or 'none'}")
    _check_source(options.get("source"))
    states = options.get("state", "NEW").upper().split(",")
    if "NEW" not in states:
        raise CannotSayError("it accepts no new connections")
    services, notes = _iptables_services(options)
    spec = {key: options[key] for key in ("state", "comment", "syn") if key in options}
    same = ("iptables", family, chain, frozenset(services), frozenset(spec.items()), options.get("protocol", ""))
    return Rule(verbs[0] != "delete", services, same, family, notes=notes, left=_of_chain(chain))


def _iptables_services(options: dict[str, str]) -> tuple[tuple[Service, ...], tuple[str, ...]]:
    protocol = options.get("protocol", "all").lower()
    ports = options.get("ports")
    if protocol in ("all", "0"):
        if ports is None:
            return _ANY_PORT, ()
        return _services(_ports(ports), [TCP]), ("The rule names no protocol, so iptables refuses it: tcp is meant.",)
    proto = _protocol(protocol)
    if ports is not None:
        return _services(_ports(ports), [proto]), ()
    if proto == UDP:
        raise CannotSayError("it opens every UDP port, and a door names the services that it opens")
    return _ANY_PORT, ()


def _iptables_options(words: list[str]) -> dict[str, str]:
    """What each option says, whatever its spelling."""
    found: dict[str, str] = {}
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        name, sign, value = word.partition("=") if word.startswith("--") else (word[:2], word[2:], word[2:])
        if name not in _IPTABLES:
            if name in _NARROWS:
                raise CannotSayError(f"{name}: {_NARROWS[name]}", "a door cannot say that")
            raise CannotSayError(f"{word}: it is not understood")
        option, takes = _IPTABLES[name]
        if takes and not sign:
            if at == len(words):
                raise CannotSayError(f"{name} has no value")
            value = words[at]
            at += 1
        if option in ("insert", "delete", "add", "wait") and at < len(words) and words[at].isdigit():
            if option == "delete":
                raise CannotSayError("it deletes a rule by its number, whichever that is")
            at += 1  # a place among the rules, or how long to wait for the lock
        if option == "match" and value not in _MATCHES:
            raise CannotSayError(f"-m {value} is not understood")
        if option in found and option != "match":
            raise CannotSayError(f"{name} stands there twice")
        found[option] = value
    return found


# ---- the script that comes with knockd

# fmt: off
_HELPER = {
    "-a": "-A", "--append": "-A", "-i": "-I", "--insert": "-I", "-x": "-D", "--delete": "-D", "-f": "-s",
    "--srcaddr": "-s", "-d": "--dport", "--dstport": "--dport", "-p": "-p", "--proto": "-p",
}
# fmt: on


def _knock_helper(words: list[str]) -> Rule:
    """knock_helper_ipt.sh, once knock_add: an iptables rule for an address and a port."""
    verb, chain, rest = "", "INPUT", ["-j", "ACCEPT"]
    at = 0
    while at < len(words):
        name, at = words[at], at + 1
        if name in ("-v", "--verbose"):
            continue
        if name in ("-c", "--chain") and at < len(words):
            chain, at = words[at], at + 1
        elif _HELPER.get(name) in ("-A", "-I", "-D"):
            verb = _HELPER[name]
        elif name in _HELPER and at < len(words):
            rest += [_HELPER[name], words[at]]
            at += 1
        else:
            raise CannotSayError(f"{name} is not understood")
    if not verb:
        raise CannotSayError("it neither adds nor deletes a rule")
    protocol = [] if "-p" in rest else ["-p", "tcp"]
    return _iptables_rule([verb, chain, *protocol, *rest], 4)


# ---- ufw


def _ufw(words: list[str]) -> Rule:
    words = [word for word in words if word not in ("--force", "-f")]
    deletes = words[:1] == ["delete"]
    if deletes:
        words = words[1:]
    elif words[:1] == ["insert"] and len(words) > 1 and words[1].isdigit():
        words = words[2:]
    elif words[:1] == ["prepend"]:
        words = words[1:]
    if words[:1] != ["allow"]:
        verb = words[0] if words else "nothing"
        if verb in ("deny", "reject"):
            raise _blocking(adds=not deletes, knocker=ADDRESS in words)
        raise CannotSayError(f"ufw {verb} is not understood")
    said = _ufw_clauses(words[1:])
    _check_source(said.get("from"))
    if said.get("to", "any") not in ("any", "0.0.0.0/0", "::/0"):
        raise CannotSayError(f"to {said['to']}: it counts for one destination only", "a door cannot say that")
    port, _, behind = said.get("port", "").lower().partition("/")
    protocol = said.get("proto", behind)
    if protocol not in ("", "any"):
        protocols: tuple[int, ...] = (_protocol(protocol),)
    elif re.search("[,:]", port):
        raise CannotSayError("ufw refuses several ports without a protocol", "add proto tcp, or proto udp")
    else:
        protocols = _IN_SERVICES.get(port, (TCP,)) if port in _NAMES else (TCP, UDP)
    services = _services(_ports(port), protocols) if port else _ANY_PORT
    if not port and protocols == (UDP,):
        raise CannotSayError("it opens every UDP port, and a door names the services that it opens")
    notes = ("No protocol is named: that is tcp and udp.",) if port and len(protocols) == 2 else ()
    return Rule(not deletes, services, ("ufw", frozenset(services), protocol), notes=notes)


def _ufw_clauses(words: list[str]) -> dict[str, str]:
    said: dict[str, str] = {}
    side = ""
    at = 0
    while at < len(words):
        word, value = words[at], words[at + 1] if at + 1 < len(words) else ""
        at += 2
        if word in ("in", "log", "log-all"):
            at -= 1
        elif word in ("from", "to"):
            side = _said_once(said, word, value)
        elif word == "port" and side != "from":
            _said_once(said, "port", value)
        elif word in ("proto", "comment"):
            _said_once(said, word, value)
        elif word == "on":
            raise CannotSayError(f"on {value}: it counts on one interface only", "a door cannot say that")
        elif word == "port":
            raise CannotSayError("it counts from some source ports only", "a door cannot say that")
        elif "from" not in said and ADDRESS not in " ".join(words):
            raise CannotSayError(_EVERYBODY)
        else:
            raise CannotSayError(f"{word} is not understood")
    return said


def _said_once(said: dict[str, str], key: str, value: str) -> str:
    """Note what a clause says; raises CannotSayError if it says nothing, or is there twice."""
    if not value or key in said:
        raise CannotSayError(f"{key} stands there twice" if key in said else f"{key} has no value")
    said[key] = value
    return key


# ---- firewall-cmd

_RICH = re.compile(r"""\s*([a-z-]+)(?:=(?:"([^"']*)"|'([^"']*)'|([^\s"']+)))?(?=\s|$)""")
_TIMES = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def _firewall_cmd(words: list[str]) -> Rule:
    rule, adds, seconds, zone, permanent = "", True, None, "", False
    at = 0
    while at < len(words):
        name, sign, value = words[at].partition("=")
        at += 1
        if name in ("--permanent", "--quiet", "-q"):
            permanent = permanent or name == "--permanent"
            continue
        if name not in ("--add-rich-rule", "--remove-rich-rule", "--timeout", "--zone"):
            everybody = name in ("--add-port", "--add-service", "--remove-port", "--remove-service")
            raise CannotSayError(_EVERYBODY if everybody else f"{name} is not understood")
        if not sign:
            value = words[at] if at < len(words) else ""
            at += 1
        if name == "--timeout":
            seconds = _firewalld_time(value)
        elif name == "--zone":
            zone = value
        elif rule:
            raise CannotSayError("it has two rules")
        else:
            rule, adds = value, name == "--add-rich-rule"
    if not rule:
        raise CannotSayError("it has no rule")
    services, family = _rich_rule(rule, adds=adds)
    same = ("firewalld", zone, permanent, family, frozenset(services))
    return Rule(adds, services, same, family, seconds=seconds, left=_not_kept(f"zone {zone}") if zone else ())


def _firewalld_time(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,9})([smh]?)", text)
    if match is None or not int(match[1]):
        raise CannotSayError(f"--timeout {text} is not understood")
    return int(match[1]) * _TIMES[match[2]]


def _rich_rule(text: str, *, adds: bool) -> tuple[tuple[Service, ...], int]:
    """What a rich rule accepts, and its family."""
    words, said, at = set(), dict[str, str](), 0
    text = text.strip()
    while at < len(text):
        match = _RICH.match(text, at)
        if match is None:
            raise CannotSayError("its rich rule is not understood")
        at = match.end()
        value = next((group for group in match.groups()[1:] if group is not None), None)
        if value is None:
            words.add(match[1])
        else:
            _said_once(said, match[1], value)
    if words & {"drop", "reject"}:
        raise _blocking(adds=adds, knocker=ADDRESS in said.get("address", ""))
    unknown = (words - {"rule", "source", "port", "service", "accept"}) | (
        said.keys() - {"family", "priority", "address", "port", "protocol", "name"}
    )
    if unknown or not {"rule", "accept"} <= words:
        what = f"{min(unknown)} in" if unknown else "the end of"
        raise CannotSayError(f"{what} its rich rule is not understood")
    _check_source(said.get("address"))
    family = {"ipv4": 4, "ipv6": 6, "": 0}.get(said.get("family", ""))
    if family is None:
        raise CannotSayError(f"its family {said['family']} is not understood")
    if "name" in said:
        if said["name"] not in _NAMES or "port" in said:
            raise CannotSayError(f"firewalld's service {said['name']} is not known here", "name its ports")
        return _services((_NAMES[said["name"]],), _IN_FIREWALLD.get(said["name"], (TCP,))), family
    if "port" not in said:
        return _ANY_PORT, family
    return _services(_ports(said["port"]), [_protocol(said.get("protocol", "none"))]), family


# ---- nft

_NFT_TOKEN = re.compile(r"""[{},;]|"[^"]*"|[^\s{},;"]+""")
_NFT_NAME = re.compile(r"[A-Za-z_.][A-Za-z0-9_./-]{0,254}")
_NFT_TIME = re.compile(r"(?=[0-9])(?:([0-9]{1,5})d)?(?:([0-9]{1,7})h)?(?:([0-9]{1,8})m)?(?:([0-9]{1,9})s)?")


def _nft(words: list[str]) -> Rule:
    tokens = _NFT_TOKEN.findall(" ".join(words))
    while tokens and tokens[-1] == ";":
        tokens.pop()
    verb, kind, rest = tokens[:1], tokens[1:2], tokens[2:]
    if kind == ["element"] and verb in (["add"], ["create"], ["delete"], ["destroy"]):
        return _nft_element(verb[0] in ("add", "create"), rest)
    if kind == ["rule"] and verb in (["add"], ["insert"], ["delete"]):
        return _nft_rule(verb[0] != "delete", rest)
    raise CannotSayError(f"nft {' '.join(verb + kind)} is not understood")


def _nft_place(tokens: Sequence[str]) -> tuple[tuple[str, str, str], Sequence[str]]:
    """Family, table and chain or set, and what follows."""
    family = "ip"
    if tokens[:1] and tokens[0] in ("ip", "ip6", "inet", "arp", "bridge", "netdev"):
        family, tokens = tokens[0], tokens[1:]
    if family not in ("ip", "ip6", "inet"):
        raise CannotSayError(f"a table of family {family} is not for knockers")
    if len(tokens) < 2 or not all(_NFT_NAME.fullmatch(name) for name in tokens[:2]):
        raise CannotSayError("its table or set is not understood")
    return (family, tokens[0], tokens[1]), tokens[2:]


def _nft_element(adds: bool, tokens: Sequence[str]) -> Rule:
    place, rest = _nft_place(tokens)
    if len(rest) < 3 or (rest[0], rest[-1]) != ("{", "}"):
        raise CannotSayError("its element is not understood")
    element = list(rest[1:-1])
    if ADDRESS not in " ".join(element):
        raise CannotSayError(_EVERYBODY)
    seconds = None
    if element[-2:-1] == ["comment"]:
        element = element[:-2]
    if element[1:2] == ["timeout"] and len(element) == 3:
        match = _NFT_TIME.fullmatch(element[2])
        if match is None:
            raise CannotSayError(f"timeout {element[2]} is not understood")
        units = zip(match.groups(), (86_400, 3_600, 60, 1), strict=True)
        seconds, element = sum(int(count or 0) * unit for count, unit in units), element[:1]
    if element != [ADDRESS]:
        raise CannotSayError(f"an element that is more than {ADDRESS} is not understood")
    name = " ".join(place)
    own = (
        f"set {name} needs `flags timeout`, and a timeout of its own does not count any more: the door's replaces it",
        f"see `nft list set {name}`, and write no longer timeout than is there",
    )
    return Rule(adds, (), ("nft element", *place), set_name=name, seconds=seconds, left=() if seconds else (own,))


def _nft_rule(adds: bool, tokens: Sequence[str]) -> Rule:
    (family, table, chain), rest = _nft_place(tokens)
    _check_chain(chain)
    source, ports, proto, states, accepts = None, "", 0, "", False
    version = 0
    at = 0
    while at < len(rest):
        word, after = rest[at], rest[at + 1 : at + 3]
        if len(after) == 2 and word in ("ip", "ip6") and after[0] == "saddr" and source is None:
            source, version, at = after[1], 4 if word == "ip" else 6, at + 3
        elif len(after) == 2 and word in ("tcp", "udp") and after[0] == "dport" and not ports:
            proto = _protocol(word)
            ports, at = _nft_values(rest, at + 2)
        elif len(after) == 2 and word == "ct" and after[0] == "state" and not states:
            states, at = _nft_values(rest, at + 2)
        elif word in ("position", "index", "comment") and after:
            at += 2
        elif word == "counter":
            at += 1
        elif word == "accept":
            accepts, at = True, at + 1
        elif word in ("drop", "reject"):
            raise _blocking(adds=adds, knocker=ADDRESS in rest)
        elif word == "handle":
            raise CannotSayError("it deletes a rule by its handle, whichever that is")
        else:
            narrows = word in ("iif", "iifname", "meta")
            why = "it counts on one interface only" if narrows else "it is not understood"
            raise CannotSayError(f"{word}: {why}", "a door cannot say that" if narrows else "")
    if not accepts:
        raise CannotSayError("it accepts nothing")
    if states and "new" not in states.split(","):
        raise CannotSayError("it accepts no new connections")
    _check_source(source)
    services = _services(_ports(ports), [proto]) if ports else _ANY_PORT
    same = ("nft rule", family, table, chain, version, frozenset(services), states)
    return Rule(adds, services, same, version, left=_of_chain(chain))


def _nft_values(tokens: Sequence[str], at: int) -> tuple[str, int]:
    """`22`, `{ 22, 80 }` or `new,established`, as a text with commas, and where it goes on."""
    if tokens[at] == "{":
        if "}" not in tokens[at:]:
            raise CannotSayError("a brace is not closed")
        end = tokens.index("}", at)
        return "".join(tokens[at + 1 : end]), end + 1
    values = [tokens[at]]
    at += 1
    while at + 1 < len(tokens) and tokens[at] == ",":
        values.append(tokens[at + 1])
        at += 2
    return ",".join(values), at


_FIREWALLS: dict[str, Callable[[list[str]], Rule]] = {
    **dict.fromkeys(("iptables", "iptables-nft", "iptables-legacy"), _iptables(4)),
    **dict.fromkeys(("ip6tables", "ip6tables-nft", "ip6tables-legacy"), _iptables(6)),
    **dict.fromkeys(("knock_add", "knock_helper_ipt.sh"), _knock_helper),
    "ufw": _ufw,
    "firewall-cmd": _firewall_cmd,
    "nft": _nft,
}
