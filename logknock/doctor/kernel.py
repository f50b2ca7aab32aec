"""Checks from below: the kernel, nftables, what this process may do, the clock, the network."""

import time
from collections.abc import Iterator

from .. import status
from ..config import Config
from .case import Case
from .finding import Finding, Level, counted, some

_FAMILIES = {2: "IPv4", 10: "IPv6"}

# Seconds between the system's clock and the hardware's that no time zone explains: a day, and two hours of daylight.
_CLOCKS_APART = 26 * 3600


def capabilities(case: Case) -> Iterator[Finding]:
    """CAP_NET_ADMIN: without it the kernel answers nothing about rules, sets and groups."""
    check = "capabilities"
    if case.host.administers:
        yield Finding(check, Level.OK, "CAP_NET_ADMIN")
    elif _is_root(case):
        text = "root here has no CAP_NET_ADMIN: no rules can be loaded, no group read, no door opened"
        yield Finding(
            check, Level.ERROR, text, "give it to the container: --cap-add NET_ADMIN, or CapAdd in its settings"
        )
    else:
        case.host.need_administrator()


def _is_root(case: Case) -> bool:
    return "\nUid:\t0\t0\t" in (case.host.text("/proc/self/status") or "")


def nftables(case: Case) -> Iterator[Finding]:
    """The kernel's nftables and libnftables; what is wrong is raised by those who ask for it."""
    yield Finding("nftables", Level.OK, f"in the kernel, and libnftables {case.host.listing.version}")


def modules(case: Case) -> Iterator[Finding]:
    """What logs: nfnetlink_log for NFLOG, nf_log_syslog for the kernel's log."""
    if "nflog" in case.config.sources:
        loaded = any("nfnetlink_log" in names for names in case.host.loggers.values())
        yield _module(case, "kernel-nflog", "nfnetlink_log", ("nfnetlink_log",), loaded=loaded)
    if case.kernel_log:
        loaded = all(
            f"nf_log_{name.lower()}" in case.host.loggers.get(number, ()) for number, name in _FAMILIES.items()
        )
        older = ("nf_log_syslog", "nf_log_ipv4")  # before Linux 5.13 each family had a module of its own
        yield _module(case, "kernel-log", "nf_log_syslog", older, loaded=loaded)


def _module(case: Case, check: str, name: str, names: tuple[str, ...], *, loaded: bool) -> Finding:
    if loaded:
        return Finding(check, Level.OK, name)
    if case.host.module_there(*names):
        return Finding(check, Level.NOTE, f"{name} is not loaded yet; a rule that logs loads it", f"modprobe {name}")
    text = f"{name} is not loaded, and no module of the running kernel has that name: nothing can be logged"
    return Finding(check, Level.ERROR, text, f"modprobe {name}  # in a container: on its host")


def namespace(case: Case) -> Iterator[Finding]:
    """Whether what is logged here reaches the kernel's log: from the first network namespace only, as a rule.

    Where it does from others, whoever can make one (any user, where there are user namespaces) can have the kernel
    itself log what a rule of theirs says.
    """
    check = "nf-log-all-netns"
    if not case.kernel_log:
        return
    if case.host.first_namespace is not False:
        if case.host.others_log:
            text = "any user who can make a network namespace can have the kernel log knocks with this prefix"
            remedy = 'sysctl -w net.netfilter.nf_log_all_netns=0  # or [log] source = "nflog"'
            yield Finding(check, Level.WARNING, text, remedy)
        return
    remedy = 'sysctl -w net.netfilter.nf_log_all_netns=1  # on the host, for all its users; source = "nflog" is better'
    own = "this is a network namespace of its own"
    match case.host.others_log:
        case True:
            yield Finding(check, Level.OK, "the kernel's log has the records of this network namespace")
        case False:
            text = f"{own} (a container, say): nothing that is logged here reaches the kernel's log"
            yield Finding(check, Level.NOTE if "nflog" in case.config.sources else Level.ERROR, text, remedy)
        case None:
            text = f"{own}: whether the kernel's log has its records cannot be seen from here"
            yield Finding(check, Level.NOTE if "nflog" in case.config.sources else Level.WARNING, text, remedy)


def clock(case: Case) -> Iterator[Finding]:
    """A clock that steps ends attempts; one that is wrong makes times in logs wrong, and shuts doors that go by it."""
    check = "clock"
    hardware = case.host.number("/sys/class/rtc/rtc0/since_epoch")
    if hardware is not None and abs(hardware - time.time()) > _CLOCKS_APART:
        days = abs(hardware - time.time()) / 86_400
        text = f"the system's clock and the hardware's are {days:,.0f} days apart"
        yield Finding(check, Level.WARNING, text, "hwclock --systohc  # once timedatectl shows the right time")
    elif case.host.synchronised is None:
        yield Finding(check, Level.NOTE, "whether something keeps the clock right cannot be seen from here")
    elif not case.host.synchronised and (timed := status.timed(case.config.doors)):
        text = f"nothing keeps the clock right: when it is a minute off, nobody gets in by {some(timed)}"
        yield Finding(check, Level.WARNING, text, "timedatectl set-ntp true")
    elif not case.host.synchronised:
        text = "nothing keeps the clock right; each step of it ends the attempts that are under way"
        yield Finding(check, Level.NOTE, text, "timedatectl set-ntp true")
    else:
        yield Finding(check, Level.OK, "synchronised")


def reverse_path(case: Case) -> Iterator[Finding]:
    """rp_filter: strict, it drops what comes in by another interface than the answer would take."""
    check = "rp-filter"
    interfaces = case.host.interfaces
    routed = any(interface.default_route for interface in interfaces)
    strict = [found.name for found in interfaces if found.rp_filter == 1]
    doubtful = [name.name for name in interfaces if name.name in strict and routed and not name.default_route]
    dropped = case.host.filtered
    if strict and dropped:
        text = f"rp_filter is strict on {some(strict)}: {counted(dropped, 'packet')} that came another way dropped"
        yield Finding(check, Level.WARNING, text, _loosen(strict))
    elif doubtful:
        text = f"rp_filter is strict on {some(doubtful)}, which no default route uses: strangers' packets are dropped"
        yield Finding(check, Level.NOTE, text, _loosen(doubtful))
    else:
        yield Finding(check, Level.OK, "drops nothing of what could be a knock")


def _loosen(names: list[str]) -> str:
    return "sysctl -w " + " ".join(f"net.ipv4.conf.{name.replace('.', '/')}.rp_filter=2" for name in names)


def ipv6(case: Case) -> Iterator[Finding]:
    """Whether there is IPv6 where the configuration expects it."""
    expected = _expects_ipv6(case.config)
    if case.host.has_ipv6:
        yield Finding("ipv6", Level.OK, "is there")
    elif expected:
        text = f"this host has no IPv6, and {expected}"
        yield Finding(
            "ipv6",
            Level.WARNING,
            text,
            "sysctl -w net.ipv6.conf.all.disable_ipv6=0  # or take it out of the configuration",
        )
    else:
        yield Finding("ipv6", Level.OK, "is not there, and nothing asks for it")


def _expects_ipv6(config: Config) -> str:
    if any(network.version == 6 for network in config.firewall.trusted):
        return "[firewall] trusted names IPv6 networks"
    for door in config.doors:
        if any(name.family == "ip6" for name in door.sets):
            return f"door {door.name} has a set for it"
        if door.target and all(len(address) == 16 for address in door.target):
            return f"door {door.name} has no other target"
    return ""
