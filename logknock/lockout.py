"""What rules would close ssh for good: to everybody but the trusted, with no door that could open it again (T38).

Rule: the daemon is not asked. A door counts that could open once it runs: with a sequence, with a one-time sequence
that is left, or with a client who may ask for ssh.
"""

from collections.abc import Collection, Iterator

from . import status
from .config import Config
from .errors import LogknockError
from .knock import Door, Service
from .packet import TCP

# Where ssh is on any host, whatever else listens now: the daemon may be down, or systemd listen for it.
SSH = Service(TCP, 22)


_NEW_FILE = "`logknock onetime generate` makes a new file, for the door and the client"


def shut(config: Config, ssh: Collection[Service]) -> Iterator[LogknockError]:
    """An error for each of ssh's services that the rules would close and nobody could open."""
    yield from unopened(config, ssh)
    for service, doors in _guarded(config, ssh):
        reasons = [_why_shut(door, service, config) for door in doors]
        if reasons and all(reasons):
            message = f"{service} is ssh, and no door can open it: {'; '.join(reasons)}"
            name = doors[0].name.partition(":")[0]  # of an SPA door, whose services are doors of their own
            hint = f"`logknock {config.to_enroll(name)}` makes one" if doors[0].proof else _NEW_FILE
            yield LogknockError(message, hint)


def unopened(config: Config, ssh: Collection[Service]) -> Iterator[LogknockError]:
    """Of these the ones that no door opens at all, which the configuration alone tells."""
    for service, doors in _guarded(config, ssh):
        if not doors:
            message = f"{service} is ssh, it is guarded, and no door opens it: it would be closed to you, too"
            yield LogknockError(message, f'a door needs opens = ["{service}"]; or take it out of [firewall] guarded')


def _guarded(config: Config, ssh: Collection[Service]) -> Iterator[tuple[Service, list[Door]]]:
    """Those that the rules close, with the doors that open them in the rules: not one with sets of others' alone."""
    if not config.firewall.mark:  # with a mark nothing is closed by us
        for service in sorted(config.guarded.intersection(ssh)):
            yield service, [door for door in config.doors if door.guard and service in door.opens]


def _why_shut(door: Door, service: Service, config: Config) -> str:
    """Why nobody can open the service by a door; empty where somebody can."""
    if door.sequence:
        return ""
    if door.proof:
        name = door.name.partition(":")[0]
        known = any(each.door == name and each.clients for each in config.totp)
        known = known or any(key.door == name and service in key.allow for key in config.spa_keys)
        return "" if known else f"door {name} has no client for it"
    reasons = status.used_up(door, config.state)
    return "" if "" in reasons else f"door {door.name}: {', '.join(reasons) or 'it has no sequence'}"
