"""A knock at the administrator's own doors, in a world made for it: proof that kernel, rules, daemon and client agree.

Rule 1: nothing outside is touched: all of it happens in the demo's namespaces, which end with the process, however it
ends; the doors are copies without commands, files and sets of others. One-time sequences are not used up, and where
clients prove who they are the copy has a client of its own, with new secrets. Rule 2: a step is told of as done only if
what it claims was seen. Rule 3: no sequence and no secret is ever told.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import NamedTuple

from .. import client, demo, enrolment, spa, totp
from ..config import Config, ConfigError, load
from ..config_values import PortRange
from ..control import ask
from ..errors import FAILURE, LogknockError
from ..firewall import ruleset
from ..firewall.sets import GRANTED, Element, Sets, key
from ..knock import Door, Service
from ..knock import Sequence as Knocks
from ..onetime import Place
from ..onetime_files import find_next, write_new
from ..packet import ICMP, SYN, TCP, address_text
from ..profile_proofs import Asked
from ..supplies import seal
from .case import command
from .finding import Finding, Level

LIVE = "live"  # the id of all that is found here
_LIMIT = 60  # seconds for everything; it takes one
_OPEN_LIMIT = 5.0  # seconds from the last knock to the open door: it takes milliseconds
_LOOK = 0.0005  # seconds between looks into the set: half a millisecond is what the time that is told may be off by

_MODULE = f"{__package__}.live"  # its name as a program, too
_FOLDER = Path("/run/demo")  # in the demo's own /run
_CONFIG = _FOLDER / "live.toml"
_RUNTIME = _FOLDER / "runtime"
_FRESH_SEED = bytes(ruleset.SEED_BYTES)  # which ports are traps does not matter here

# What is knocked at which kind of doors, where it is no sequence that somebody wrote.
_KINDS = {"totp": "TOTP", "code": "codes of an authenticator", "spa": "SPA"}
_CLIENT = "doctor"

# How long a step has to go on for its knocks to be sent, seconds.
_STEP_LEFT = 2.0


class _Trial(NamedTuple):
    """A door to knock at, which kind it is, what to knock, and the packed address that is knocked on.

    proof: the door's one client here, who knocks some of `knocks` (TOTP), or sends a packet to the one of them (SPA).
    """

    door: Door
    kind: str
    knocks: Knocks
    target: bytes
    proof: totp.TotpDoor | spa.Key | None = None


# ---- outside


def prove(path: Path) -> Iterator[Finding]:
    """Knock at the first door of each kind, and tell each step. What a configuration lacks is told of elsewhere."""
    try:
        config = load(path)
    except ConfigError:
        return
    if os.geteuid():
        text = "a live proof makes network namespaces, and only root may"
        yield Finding(LIVE, Level.UNSEEN, text, f"sudo {command('doctor --live', path)}")
        return
    missing = [program for program in demo.PROGRAMS if shutil.which(program) is None]
    if missing:
        packages = " ".join(sorted({demo.PROGRAMS[program] for program in missing}))
        yield Finding(LIVE, Level.ERROR, f"{', '.join(missing)}: not found on the PATH", f"apt-get install {packages}")
        return
    yield from _inside(path)
    if config.firewall.mark:
        text = "the rules there drop by themselves: whether this host's own firewall accepts the mark is no part of it"
        yield Finding(LIVE, Level.NOTE, text)
    if config.sources != ("nflog",):
        text = (
            "this proves all but the way through the kernel's log, which new namespaces do not write to: it was NFLOG"
        )
        yield Finding(LIVE, Level.NOTE, text)


def _inside(path: Path) -> Iterator[Finding]:
    """Run this file in namespaces of its own, and pass on what it finds; at the end, however it comes, all is gone."""
    spaces = " ".join(os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "mnt", "pid"))
    inner = [sys.executable, "-P", "-m", _MODULE, str(path.absolute()), spaces]
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *demo.NAMESPACES, *inner],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        env=demo.environment(), start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    rest: list[str] = []
    try:
        for line in process.stdout:
            if line.startswith("{"):
                found = json.loads(line)
                yield Finding(LIVE, Level(found["level"]), found["text"], found["remedy"])
            else:
                rest.append(line.strip())
        if process.wait():
            words = next((line for line in reversed(rest) if line), f"exit status {process.returncode}")
            level = Level.UNSEEN if "not permitted" in words or "denied" in words else Level.ERROR
            yield Finding(
                LIVE, level, f"the proof could not be made: {words}", "logknock demo  # it says what is missing"
            )
    finally:
        process.kill()  # that is unshare: its namespaces' first process dies with it, and the kernel ends the others
        process.wait()
        process.stdout.close()


# ---- what is tried


def choose(config: Config) -> Iterator[_Trial]:
    """The first door of each kind that opens a service, and that a client's knocks can open."""
    seen: set[str] = set()
    for door in config.doors:
        kind = _KINDS.get(door.proof) or ("one-time sequences" if door.onetime else "a sequence")
        if not door.opens or kind in seen:
            continue
        knocks = _services(config, door)
        plain = all(service.proto != TCP for service in knocks) or SYN & door.tcp_flags.mask == door.tcp_flags.value
        if knocks and plain:
            seen.add(kind)
            yield _Trial(door, kind, knocks, _target(door), _proof(config, door))


def _services(config: Config, door: Door) -> Knocks:
    """Its sequence, or the next one of its files; of a door with clients, the services that their knocks are among."""
    if not door.proof:
        return next(_first(door), ()) if door.onetime else door.sequence
    terms = config.terms[_written(door)]
    if door.proof != "spa":
        return terms.services
    ports = enrolment.Ways(terms.ports, terms.icmp).best
    return (Service(ports.proto, ports.first) if ports else Service(ICMP, 0),)


def _proof(config: Config, door: Door) -> totp.TotpDoor | spa.Key | None:
    """The door's client here, whom nobody else knows; None where the sequence is all that is asked for."""
    if not door.proof:
        return None
    name, secret = _written(door), secrets.token_bytes(totp.NEW_SECRET)
    if door.proof == "spa":
        hmac_key = secrets.token_bytes(spa.MAX_HMAC_KEY)
        return spa.Key(name, _CLIENT, secret[: spa.MAX_KEY], hmac_key, "sha256", door.opens)
    return next(replace(each, clients=(totp.Client(_CLIENT, secret),)) for each in config.totp if each.door == name)


def _written(door: Door) -> str:
    """Its name in the configuration: an SPA door is one for each service that it opens."""
    return door.name.partition(":")[0]


def _first(door: Door) -> Iterator[Knocks]:
    """A sequence out of the door's files: it is copied, and stays unused."""
    for file in door.onetime:
        with suppress(LogknockError):  # told of elsewhere
            found = find_next(Path(file), Place())
            if found.sequence:
                yield found.sequence


def _target(door: Door) -> bytes:
    """The address to knock on: one that the door asks for, IPv4 where there is a choice."""
    return min(door.target, key=len, default=ip_address(demo.GATEWAY4).packed)


def render(config: Config, trials: Sequence[_Trial]) -> str:
    """A configuration with these doors alone, which opens our own sets and nothing else."""
    rules = config.firewall
    lines = [
        f'[log]\nsource = "nflog"\ngroup = {config.group}\n',
        f'[paths]\nstate = "{_FOLDER}/state"\nruntime = "{_RUNTIME}"\n',
        f"[firewall]\ntraps = {rules.traps}\nrate = {rules.rate}\nburst = {rules.burst}\n",
    ]
    if any(trial.door.proof in ("totp", "code") for trial in trials):
        lines.append(f"[totp]\nhost = {json.dumps(config.host)}\n")
    for trial in trials:
        door = trial.door
        values = {
            **_steps(config, trial),
            "opens": list(map(str, door.opens)),
            "seq_timeout": f"{round(door.seq_timeout * 1000)}ms",
            "timeout": f"{round(door.timeout * 1000)}ms",
            **({"target": [address_text(trial.target)]} if door.target else {}),
        }
        text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
        lines.append(f'[doors."{_written(door)}"]\n{text}')
        if isinstance(trial.proof, spa.Key):
            lines.append(enrolment.spa_table(trial.proof))
        elif trial.proof:
            lines.append(enrolment.totp_table(trial.proof.door, _CLIENT, trial.proof.clients[0].secret))
    return "\n".join(lines)


def _steps(config: Config, trial: _Trial) -> dict[str, object]:
    """What of the door's table says how it is knocked at."""
    door = trial.door
    if door.onetime:
        return {"onetime": [str(_copy(door))]}
    if not door.proof:
        return {"sequence": list(map(str, trial.knocks))}
    terms = config.terms[_written(door)]
    ports = list(map(str, terms.ports))
    if door.proof == "spa":
        return {"spa.ports": ports + ["icmp"] * terms.icmp}
    length: dict[str, object] = {"totp.length": terms.length, "totp.step": f"{terms.step}s"}
    return {"totp.ports": ports, "totp.skew": terms.skew, **({"totp.code": terms.digits} if terms.digits else length)}


def _copy(door: Door) -> Path:
    return _FOLDER / f"onetime-{door.name}"


# ---- inside


def _main(path: str, outside: str) -> None:
    """The gateway: rules and daemon; and the client, who knocks."""
    config = load(Path(path))  # before /run is another
    trials = list(choose(config))
    if not trials:
        _tell(Level.NOTE, "no door opens a service by knocks that a client can send: there is nothing to prove")
        return
    signal.signal(signal.SIGALRM, lambda number, frame: os._exit(FAILURE))
    signal.alarm(_LIMIT)
    try:
        demo.enter(outside)
        _tell(Level.OK, "a gateway and a client: network namespaces of this kernel, made for this")
        daemon = _start(config, trials)
    except LogknockError as error:
        _tell(Level.ERROR, error.message, error.hint)
        return
    for trial in trials:
        try:
            _try(trial, daemon)
        except LogknockError as error:
            _tell(Level.ERROR, f"door {trial.door.name} ({trial.kind}): {error.message}", error.hint)


def _start(config: Config, trials: Sequence[_Trial]) -> demo.Program:
    for trial in trials:
        if trial.door.onetime:
            write_new(_copy(trial.door), [trial.knocks])
    _CONFIG.touch(0o600)  # it may hold secrets
    _CONFIG.write_text(render(config, trials))
    copy = load(_CONFIG)
    onetime, _ = ruleset.knocked_once(copy)
    ruleset.load(ruleset.render(copy, _FRESH_SEED, ruleset.listening(), onetime))
    _tell(Level.OK, "your rules are loaded there, for your group, rate and traps")
    daemon = demo.Program("gateway", f"exec logknock run -c {_CONFIG}")
    daemon.until("ready")
    if any(trial.door.onetime for trial in trials):
        daemon.until("one-time sequence")  # how many are left: the file has been read
    _tell(Level.OK, "the daemon runs there, with copies of your doors")
    return daemon


def _try(trial: _Trial, daemon: demo.Program) -> None:
    """Knock, and see the elements appear; then all is shut again, for the next door may open the same."""
    source = _route(trial.target)
    list(daemon.new_lines())  # of the doors before
    door, sets = trial.door, Sets()
    elements = [Element(GRANTED[len(source)], key(source, service)) for service in door.opens]
    knocker = demo.Program("client", f"exec python3 -m {_MODULE} {address_text(trial.target)}")
    knocker.until("ready")
    knocks, payload = _now(trial, source)
    knocker.type(json.dumps([list(map(str, knocks)), payload]))
    opened = _wait(sets, elements)
    last = float(knocker.until("sent ")[-1].split()[1])
    sent = "a packet" if payload else f"{len(knocks)} knocks"
    what = f"door {door.name} ({trial.kind}): {sent}"
    if opened is None:
        said = " | ".join(daemon.new_lines()) or "nothing"
        _tell(Level.ERROR, f"{what}, and it did not open; the daemon said: {said}")
    else:
        after = f"open {(opened - last) * 1000:.1f} ms after {'it' if payload else 'the last'}"
        _tell(Level.OK, f"{what}, {after}, for {door.timeout:g} s")
        list(ask(_RUNTIME, "revoke", all=True))


def _now(trial: _Trial, source: bytes) -> tuple[Knocks, str]:
    """What to knock at this time, and what the knock carries."""
    proof, now = trial.proof, time.time()
    if isinstance(proof, spa.Key):
        (service,) = trial.knocks
        place = PortRange(*service, service.port)
        asked = Asked(proof.key, proof.hmac_key, proof.digest, proof.allow, place, user=_CLIENT)
        return trial.knocks, seal(asked, source, int(now)).decode()
    if proof is None:
        return trial.knocks, ""
    step = totp.step_at(now, proof.step)
    left = totp.window(step, proof.step, proof.skew)[1] - now
    if left < _STEP_LEFT:
        time.sleep(left)
        step += 1
    return totp.sequence_of(proof, proof.clients[0], step), ""


def _route(target: bytes) -> bytes:
    """Make the target an address of the gateway, if it is none yet; the client's address, packed."""
    address, version = address_text(target), ip_address(target).version
    ours, theirs = (demo.GATEWAY4, demo.CLIENT4) if version == 4 else (demo.GATEWAY6, demo.CLIENT6)
    if address != ours:
        nodad = [] if version == 4 else ["nodad"]
        for words in (
            ["ip", "addr", "add", f"{address}/{len(target) * 8}", "dev", "eth0", *nodad],
            ["ip", "-n", "client", f"-{version}", "route", "add", address, "via", ours],
        ):
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                raise LogknockError(f"`{' '.join(words)}`: {done.stderr.strip()}")
    return ip_address(theirs).packed


def _wait(sets: Sets, elements: Sequence[Element]) -> float | None:
    """When all of them were there, by the monotonic clock; None if they did not come."""
    end = time.monotonic() + _OPEN_LIMIT
    while time.monotonic() < end:
        if all(sets.has(element) for element in elements):
            return time.monotonic()
        time.sleep(_LOOK)
    return None


def _knock(host: str) -> None:
    """The client: ready, and then the knocks that it is told of, and when it was that the last one was to be sent."""
    address = client.Address(AF_INET6 if ":" in host else AF_INET, host)
    used: dict[Service, set[int]] = {}
    print("ready", flush=True)
    words, payload = json.loads(sys.stdin.readline())
    *first, last = (client.Knock(Service(ICMP, 0)),) if words == ["icmp"] else client.parse_knocks(words)
    client.knock(address, first, used=used)
    if first:
        time.sleep(client.DELAY)
    began = time.monotonic()  # before, not behind: the door may be open when the call comes back
    client.knock(address, [last._replace(payload=payload.encode())], used=used)
    print(f"sent {began}", flush=True)


def _tell(level: Level, text: str, remedy: str = "") -> None:
    print(json.dumps({"level": level, "text": text, "remedy": remedy}), flush=True)


if __name__ == "__main__":
    if "net:" in sys.argv[-1]:
        _main(*sys.argv[1:])
    else:
        _knock(sys.argv[1])
