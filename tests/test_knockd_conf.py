"""From knockd.conf to our configuration: a corpus of files from the field, each command's counterpart, and any text."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logknock.config import load
from logknock.imported import original
from logknock.knock import Service
from logknock.knockd_commands import CannotSayError, understand
from logknock.knockd_conf import MAX_LINE, Finding, Imported, convert

from .config_files import write
from .netns import Host

CORPUS = Path(__file__).parent / "corpus/knockd"
FILES = sorted(path.stem for path in CORPUS.glob("*.conf"))

# The programs of this host, as far as the corpus names some without their path.
PROGRAMS = {"printf": "/usr/bin/printf", "echo": "/usr/bin/echo"}

IPTABLES = "iptables -I INPUT -s %IP% -p tcp --dport 22 -j ACCEPT"


def read(name: str) -> str:
    """A file of the corpus as the command reads it."""
    return (CORPUS / name).read_bytes().decode(errors="surrogateescape")


def imported(text: str) -> Imported:
    return convert(text, "knockd.conf", PROGRAMS.get)


def told(findings: tuple[Finding, ...]) -> str:
    """What is said of a file, a line for each message and for each hint."""
    return "".join(
        f"{finding.line}: {finding.section}: {finding.message}\n" + (f"hint: {finding.hint}\n" if finding.hint else "")
        for finding in findings
    )


def door(*lines: str, sequence: str = "7000:udp,8000:udp,9000:udp") -> Imported:
    return imported("\n".join(["[a]", f"sequence = {sequence}", *lines]))


def keys(*lines: str, sequence: str = "7000:udp,8000:udp,9000:udp") -> dict[str, object]:
    """The keys of a door of these lines, without those that every door has."""
    result = door(*lines, sequence=sequence)
    assert not result.errors
    found = tomllib.loads(result.toml).get("doors", {}).get("a", {})
    return {key: value for key, value in found.items() if key not in ("sequence", "seq_timeout")}


def kept(*lines: str) -> str:
    """Why a door of these lines is left as comments."""
    result = door(*lines)
    assert (result.errors, result.doors, "doors" in tomllib.loads(result.toml)) == ((), 0, False)
    (finding,) = result.left
    assert finding.message in " ".join(result.toml.replace("\n# ", " ").split("\n"))
    return finding.message


@pytest.mark.parametrize("name", FILES)
def test_a_file_from_the_field_becomes_just_this(name: str) -> None:
    """What is written, and what is said, to the letter; NAME.toml is not there where the file has errors.

    NAME.said is what makes the exit code, NAME.told what differs besides.
    """
    result = convert(read(f"{name}.conf"), f"{name}.conf", PROGRAMS.get)
    found = {"toml": result.toml, "said": told(result.errors or result.left), "told": told(result.told)}
    for suffix, text in found.items():
        expected = CORPUS / f"{name}.{suffix}"
        assert text == (expected.read_text() if expected.exists() else ""), expected


@pytest.mark.parametrize("name", [name for name in FILES if (CORPUS / f"{name}.toml").exists()])
def test_each_line_of_the_original_stands_in_a_comment(name: str) -> None:
    """Nothing is dropped in silence."""
    written = (CORPUS / f"{name}.toml").read_text().splitlines()
    assert [original(line) for line in read(f"{name}.conf").split("\n") if line.strip()] == [
        line for line in written if line.startswith("#|")
    ]


# ---- commands of the firewall


OPENS = {
    "append": "iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT",
    "insert at a place": "/usr/sbin/iptables -I INPUT 1 -s %IP% -p tcp --dport 22 -j ACCEPT",
    "long forms": "iptables --insert INPUT --source %IP% --protocol tcp --destination-port 22 --jump ACCEPT",
    "with =": "iptables --insert=INPUT --src=%IP%/32 --protocol=tcp --dport=22 --jump=ACCEPT",
    "short forms with the value behind": "iptables -IINPUT -s%IP% -ptcp --dport 22 -jACCEPT",
    "waits for the lock": "iptables -w -I INPUT -s %IP% -p tcp --dport 22 -j ACCEPT",
    "waits so long": "iptables -w 5 -I INPUT -s %IP% -p tcp --dport 22 -j ACCEPT",
    "matches": "iptables -t filter -I INPUT -p tcp -m tcp -s %IP% -m state --state NEW --dport ssh -j ACCEPT",
    "conntrack": "iptables -I INPUT -s %IP% -p 6 -m conntrack --ctstate ESTABLISHED,NEW --dport 22 --syn -j ACCEPT",
    "comment": "iptables -I INPUT -s %IP% -p tcp --dport 22 -m comment --comment 'for %IP%; by knock' -j ACCEPT",
    "multiport": "iptables -I INPUT -s %IP% -p tcp -m multiport --dports 22 -j ACCEPT",
    "another build": "/usr/sbin/iptables-legacy -I INPUT -s %IP% -p tcp --dport 22 -j ACCEPT",
    "sudo": "sudo -n /sbin/iptables -I INPUT -s %IP% -p tcp --dport 22 -j ACCEPT",
    "IPv6": "ip6tables -I INPUT -s %IP%/128 -p tcp --dport 22 -j ACCEPT",
    "quotes": "'iptables' \"-I\" INPUT -s \"%IP%\" -p tcp --dport 2\\2 -j ACC'EPT'",
    "both at once": f"{IPTABLES} && ip6tables -I INPUT -s %IP% -p tcp --dport 22 -j ACCEPT",
    "both in turn": f"{IPTABLES}; ip6tables -I INPUT -s %IP% -p tcp --dport 22 -j ACCEPT;",
    "a comment of the shell": f"{IPTABLES} # that's it",
    "knockd's own script": "knock_helper_ipt.sh -a -f %IP% -d 22",
    "the script's long forms": "/usr/sbin/knock_helper_ipt.sh --insert --srcaddr %IP% --dstport 22 --proto tcp -v",
    "ufw": "ufw allow from %IP% to any port 22 proto tcp",
    "ufw inserts": "/usr/sbin/ufw insert 1 allow in proto tcp from %IP% to any port ssh comment 'by knock'",
    "ufw prepends": "ufw prepend allow from %IP% to any port 22/tcp",
    "firewalld": 'firewall-cmd --add-rich-rule=\'rule family="ipv4" source address="%IP%" port port="22"'
    ' protocol="tcp" accept\'',
    "firewalld's service": "firewall-cmd -q --zone public --add-rich-rule 'rule service name=ssh source address=%IP%"
    " accept'",
    "nft": "nft add rule inet filter input ip saddr %IP% tcp dport 22 accept",
    "nft inserts": "nft insert rule filter INPUT position 3 tcp dport { ssh } ip6 saddr %IP% counter accept",
    "nft in quotes": 'nft "insert rule inet filter input ip saddr %IP% ct state { new } tcp dport 22 accept;"',
}


@pytest.mark.parametrize("command", OPENS.values(), ids=OPENS)
def test_a_command_that_accepts_the_knocker_is_a_door_that_opens(command: str) -> None:
    """Whatever the firewall and the order and spelling of the options."""
    assert keys(f"command = {command}") == {"opens": ["22/tcp"], "timeout": "1d"}


CLOSES = {
    IPTABLES: "iptables -D INPUT -p tcp --dport ssh --source=%IP% --jump ACCEPT",
    "iptables -A INPUT -s %IP% --dport 22 -j ACCEPT": "iptables -D INPUT -s %IP% --dport 22 -j ACCEPT",
    "knock_add -i -f %IP% -d 22": "knock_add -x -f %IP% -d 22",
    "ufw allow from %IP% to any port 22/tcp": "ufw --force delete allow from %IP% to any port 22/tcp",
    "nft add rule ip f input ip saddr %IP% tcp dport 22 accept": "nft delete rule f input tcp dport 22 ip saddr %IP%"
    " accept",
    "firewall-cmd --add-rich-rule='rule source address=%IP% service name=ssh accept'": "firewall-cmd --remove-rich-rule"
    ' \'rule source address="%IP%" service name="ssh" accept\'',
}


@pytest.mark.parametrize(("start", "stop"), CLOSES.items())
def test_a_stop_command_that_undoes_it_is_a_timeout(start: str, stop: str) -> None:
    """cmd_timeout, or knockd's default."""
    lines = f"start_command = {start}", f"stop_command = {stop}"
    assert keys(*lines) == {"opens": ["22/tcp"], "timeout": "10s"}
    assert keys(*lines, "cmd_timeout = 5400") == {"opens": ["22/tcp"], "timeout": "1h30m"}
    assert keys(*lines, "cmd_timeout = 0") == {"opens": ["22/tcp"], "timeout": "1s"}


@pytest.mark.parametrize(("start", "stop"), CLOSES.items())
def test_a_pair_of_doors_is_a_door_and_one_that_closes_it(start: str, stop: str) -> None:
    """knockd's first example, with each firewall; another door of the same rule is closed too."""
    pair = f"[a]\nsequence=1:udp\ncommand={start}\n[b]\nsequence=2:udp\ncommand={stop}\n[c]\nsequence=3:udp\n"
    doors = tomllib.loads(imported(f"{pair}command={start}\nstop_command={stop}\n").toml)["doors"]
    assert doors["b"] == {"sequence": ["2/udp"], "seq_timeout": "25s", "closes": ["a", "c"]}


def test_a_door_that_closes_half_of_another_is_kept() -> None:
    """Closing all of it would close more than was meant; and one that closes more than there is, less."""
    two = f"{IPTABLES}; iptables -I INPUT -s %IP% -p tcp --dport 80 -j ACCEPT"
    for start, stop, why in ((two, IPTABLES, "a part of what 'a' opens"), (IPTABLES, two, "just what it closes")):
        result = imported(f"[a]\nsequence=1\ncommand={start}\n[b]\nsequence=2\ncommand={stop.replace('-I', '-D')}\n")
        assert [(finding.section, why in finding.message) for finding in result.left] == [("b", True)]


@given(st.permutations(["-s %IP%", "-p tcp", "-m multiport", "--dports 80,22", "-m state", "--state NEW", "-j ACCEPT"]))
def test_the_order_of_options_says_nothing(options: list[str]) -> None:
    """A rule is deleted by its options in any order."""
    adds = understand(f"iptables -I INPUT {' '.join(options)}", PROGRAMS.get)
    deletes = understand(
        "iptables -D INPUT -s %IP% -p tcp -m multiport --dports 22,80 -m state --state NEW -j ACCEPT", PROGRAMS.get
    )
    (added,), (deleted,) = adds.rules, deletes.rules
    assert (added.adds, deleted.adds, added.same) == (True, False, deleted.same)
    assert set(added.services) == {Service.parse("22/tcp"), Service.parse("80/tcp")}


WIDER = {
    "an interface": "iptables -I INPUT -i eth0 -s %IP% -p tcp --dport 22 -j ACCEPT",
    "an interface, long": "iptables -I INPUT --in-interface=eth0 -s %IP% -p tcp --dport 22 -j ACCEPT",
    "a destination": "iptables -I INPUT -d 192.0.2.1 -s %IP% -p tcp --dport 22 -j ACCEPT",
    "a source port": "iptables -I INPUT -s %IP% -p tcp --sport 1024 --dport 22 -j ACCEPT",
    "an option that nobody knows": "iptables -I INPUT -s %IP% -p tcp --dport 22 -j ACCEPT --dwim",
    "a match": "iptables -I INPUT -s %IP% -p tcp --dport 22 -m time --timestart 9:00 -j ACCEPT",
    "a negation": "iptables -I INPUT -s %IP% -p tcp ! --dport 22 -j ACCEPT",
    "a negated value": "iptables -I INPUT -s ! %IP% -p tcp --dport 22 -j ACCEPT",
    "a network": "iptables -I INPUT -s %IP%/16 -p tcp --dport 22 -j ACCEPT",
    "another address": "iptables -I INPUT -s 192.0.2.1 -p tcp --dport 22 -j ACCEPT",
    "everybody": "iptables -I INPUT -p tcp --dport 22 -j ACCEPT",
    "the other way": "iptables -I OUTPUT -s %IP% -p tcp --dport 22 -j ACCEPT",
    "another table": "iptables -t nat -I INPUT -s %IP% -p tcp --dport 22 -j ACCEPT",
    "another target": "iptables -I INPUT -s %IP% -p tcp --dport 22 -j LOG",
    "no target": "iptables -I INPUT -s %IP% -p tcp --dport 22",
    "dropped": "iptables -I INPUT -s %IP% -p tcp --dport 22 -j DROP",
    "established only": "iptables -I INPUT -s %IP% -p tcp --dport 22 -m state --state ESTABLISHED -j ACCEPT",
    "no port number": "iptables -I INPUT -s %IP% -p tcp --dport 70000 -j ACCEPT",
    "too many ports": "iptables -I INPUT -s %IP% -p tcp --dport 1000:2000 -j ACCEPT",
    "another protocol": "iptables -I INPUT -s %IP% -p sctp --dport 22 -j ACCEPT",
    "half of it understood": f"{IPTABLES} && iptables -I INPUT -s %IP% -j LOG",
    "on a condition": f"/usr/bin/true && {IPTABLES}",
    "and two programs": f"{IPTABLES} && /usr/bin/true && /usr/bin/true",
    "for a while, but not undone": f"{IPTABLES}; sleep 10",
    "for a while, and half undone": f"{IPTABLES}; ip6{IPTABLES}; sleep 10; {IPTABLES.replace('-I', '-D')}",
    "for no while": f"{IPTABLES}; sleep 0.5; {IPTABLES.replace('-I', '-D')}",
    "in the background": f"{IPTABLES} &",
    "ufw on an interface": "ufw allow in on eth0 from %IP% to any port 22",
    "ufw to a destination": "ufw allow from %IP% to 192.0.2.1 port 22",
    "ufw for everybody": "ufw allow 22/tcp",
    "ufw denies": "ufw deny from %IP% to any port 22",
    "ufw from a port": "ufw allow from %IP% port 22 to any",
    "ufw by number": "ufw delete 3",
    "ufw limits": "ufw limit from %IP% to any port 22",
    "firewalld for everybody": "firewall-cmd --add-port=22/tcp",
    "firewalld rejects": "firewall-cmd --add-rich-rule='rule source address=%IP% service name=ssh reject'",
    "firewalld limits": "firewall-cmd --add-rich-rule='rule source address=%IP% service name=ssh"
    " limit value=1/m accept'",
    "firewalld with a destination": "firewall-cmd --add-rich-rule='rule source address=%IP% destination"
    " address=192.0.2.1 service name=ssh accept'",
    "firewalld for all but": "firewall-cmd --add-rich-rule='rule source NOT address=%IP% service name=ssh accept'",
    "nft on an interface": "nft add rule inet f input iifname eth0 ip saddr %IP% tcp dport 22 accept",
    "nft for all but": "nft add rule inet f input ip saddr != %IP% tcp dport 22 accept",
    "nft for everybody": "nft add rule inet f input tcp dport 22 accept",
    "nft limits": "nft add rule inet f input ip saddr %IP% tcp dport 22 limit rate 1/minute accept",
    "nft accepts established only": "nft add rule inet f input ip saddr %IP% tcp dport 22 ct state established accept",
    "nft drops": "nft add rule inet f input ip saddr %IP% tcp dport 22 drop",
    "nft forwards": "nft add rule inet f forward ip saddr %IP% tcp dport 22 accept",
    "nft with more in the element": "nft add element inet f s { %IP% . 22 }",
    "nft with two elements": "nft add element inet f s { %IP%, 192.0.2.1 }",
    "nft with another element": "nft add element inet f s { 192.0.2.1 }",
    "nft to a chain of a bridge": "nft add rule bridge f input ip saddr %IP% tcp dport 22 accept",
}


@pytest.mark.parametrize("command", WIDER.values(), ids=WIDER)
def test_a_command_that_says_more_is_kept_as_a_comment(command: str) -> None:
    """A restriction that is dropped would open more than was meant."""
    kept(f"command = {command}")


UNDOES_NOT = {
    "another port": "iptables -D INPUT -s %IP% -p tcp --dport 2222 -j ACCEPT",
    "another protocol": "iptables -D INPUT -s %IP% -p udp --dport 22 -j ACCEPT",
    "another chain": "iptables -D OPEN -s %IP% -p tcp --dport 22 -j ACCEPT",
    "another program": "/usr/local/bin/shut %IP%",
    "another firewall": "ufw delete allow from %IP% to any port 22 proto tcp",
    "the same again": IPTABLES,
    "IPv6": "ip6tables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT",
    "all rules": "iptables -F INPUT",
}


@pytest.mark.parametrize("stop", UNDOES_NOT.values(), ids=UNDOES_NOT)
def test_a_stop_command_that_does_something_else_keeps_the_door_as_a_comment(stop: str) -> None:
    """What is it to close?"""
    assert "stop_command" in kept(f"start_command = {IPTABLES}", f"stop_command = {stop}")


def test_every_port_becomes_the_one_that_the_manual_speaks_of() -> None:
    """knockd's second example opens every port, and says that it is for ssh: less is opened, and told."""
    result = door("command = iptables -I INPUT -s %IP% -j ACCEPT")
    assert tomllib.loads(result.toml)["doors"]["a"]["opens"] == ["22/tcp"]
    assert ["every TCP port" in finding.message for finding in result.left] == [True]


def test_what_opens_for_one_family_only_is_kept() -> None:
    """A door opens for IPv4 and for IPv6; an empty command for one of them is a restriction."""
    assert "IPv6" in kept(f"command = {IPTABLES}", "command_6 =")
    assert "IPv6" in kept("command =", f"command_6 = {IPTABLES}")
    assert "IPv6" in kept(f"command = {IPTABLES}", "command_6 = ip6tables -I INPUT -s %IP% -p tcp --dport 23 -j ACCEPT")


def test_a_set_that_closes_first_by_itself_says_how_long() -> None:
    """The element's own timeout, or cmd_timeout if that is shorter."""
    start = "start_command = nft add element inet f s { %IP% timeout 30s }"
    stop = "stop_command = nft delete element inet f s { %IP% }"
    assert keys(start)["timeout"] == "30s"
    assert keys(start, stop, "cmd_timeout = 60")["timeout"] == "30s"
    assert keys(start, stop, "cmd_timeout = 20")["timeout"] == "20s"


# ---- other commands


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        pytest.param("/bin/a %IP%", ["/bin/a", "{src}"], id="the address"),
        pytest.param("echo %IP%", ["/usr/bin/echo", "{src}"], id="a program that is looked for"),
        pytest.param("/bin/a --from=%IP%,%IP%", ["/bin/a", "--from={src},{src}"], id="inside a word, twice"),
        pytest.param("/bin/a 'b c' \"d e\" f\\ g", ["/bin/a", "b c", "d e", "f g"], id="quotes and a backslash"),
        pytest.param("/bin/a '' \"\" b''c", ["/bin/a", "", "", "bc"], id="empty words"),
        pytest.param("/bin/a '$x `y` | ; \"z\"'", ["/bin/a", '$x `y` | ; "z"'], id="single quotes keep all"),
        pytest.param('/bin/a "\\$x \\"y\\" \\z"', ["/bin/a", '$x "y" \\z'], id="backslashes between double quotes"),
        pytest.param("/bin/a b # c", ["/bin/a", "b"], id="the shell's comment"),
        pytest.param("/bin/a b#c d=e f~g", ["/bin/a", "b#c", "d=e", "f~g"], id="signs that say nothing there"),
        pytest.param("/bin/a b;", ["/bin/a", "b"], id="a semicolon at the end"),
        pytest.param("/bin/sh /root/knocked.sh", ["/bin/sh", "/root/knocked.sh"], id="a script"),
    ],
)
def test_a_command_that_needs_no_shell_is_an_argv(command: str, argv: list[str]) -> None:
    """As a shell would have split it (T35); a door that closes nothing runs it at each knock."""
    assert keys(f"command = {command}") == {"on_open": argv, "timeout": "1s"}


@pytest.mark.parametrize(
    "command",
    [
        *("/bin/a $HOME", '/bin/a "$HOME"', "/bin/a `b`", '/bin/a "`b`"', "/bin/a | b", "/bin/a > b", "/bin/a < b"),
        *(
            "/bin/a & ",
            "/bin/a && /bin/b",
            "/bin/a || /bin/b",
            "/bin/a ; /bin/b",
            "(/bin/a)",
            "{ /bin/a; }",
            "/bin/a *",
        ),
        *("/bin/a ?", "/bin/a [b]", "/bin/a ~", "/bin/a b{c,d}", "A=b /bin/a", "! /bin/a", "/bin/a 'b", '/bin/a "b'),
        *("/bin/a b\\", "; /bin/a", "bash -c 'a %IP%'", "/bin/sh -ec a", "a %IP%", "b/a %IP%", "%IP% a", "/%IP% a"),
        *("/bin/a {src}", "/bin/a '{src}'", "/bin/a b\x01", "# nothing", "/sbin/ip route add %IP%", "sysctl -w a=b"),
        *("iptables -F", "nft flush ruleset", "nft -f /etc/nftables.conf", "ipset add a %IP%", "tc qdisc", "sudo a"),
        *("''", "firewall-cmd --reload", "ufw reload", "sudo"),
    ],
)
def test_a_command_that_needs_a_shell_or_privileges_is_kept_as_a_comment(command: str) -> None:
    """An argv of it would do something else, or fail at each knock (T35)."""
    kept(f"command = {command}")


def test_commands_for_both_families_and_for_the_end() -> None:
    """Absent: the other form counts; empty: nothing is run; knockd runs no stop without its start."""
    start, stop = "start_command = /a %IP%", "stop_command = /b %IP%"
    both = {"on_open": ["/a", "{src}"], "on_close": ["/b", "{src}"], "timeout": "10s"}
    assert keys(start, stop) == both
    assert keys(start, stop, "start_command_6 = /c") == {**both, "on_open_6": ["/c"]}
    assert keys(start, stop, "stop_command_6 = /c") == {**both, "on_close_6": ["/c"]}
    assert keys(start, stop, "stop_command_6 =") == {**both, "on_close_6": []}
    assert keys(start, stop, "start_command_6 =") == {**both, "on_open_6": [], "on_close_6": []}
    assert keys("command_6 = /a", stop) == {"on_open_6": ["/a"], "on_close_6": ["/b", "{src}"], "timeout": "10s"}


# ---- the grammar


def test_the_grammar_is_knockd_s() -> None:
    """Case, blanks, aliases, and which of several counts."""
    text = "\n  [a] \n\tSEQUENCE=1 , 2:UDP,\t3:Tcp \n TimeOut = 7\n # x\nCommand = /a\nsTART_cOMMAND=/b = c\n"
    text += "TCPFlags=SYN\n"
    for ending in ("\n", "\r\n"):
        result = imported(text.replace("\n", ending))
        assert tomllib.loads(result.toml)["doors"]["a"] == {
            "sequence": ["1/tcp", "2/udp", "3/tcp"],
            "seq_timeout": "7s",
            "tcp_flags": "syn,!ack",
            "on_open": ["/b", "=", "c"],
            "timeout": "1s",
        }
        assert "more than once" in result.toml


def test_flags_of_several_lines_add_up() -> None:
    """As knockd reads them."""
    found = keys("tcpflags = syn,ack", "TCPFlags = !ACK,psh", "command = /a", sequence="1")
    assert found["tcp_flags"] == "syn,!ack,psh"


@pytest.mark.parametrize(
    "junk", ["#\0", "#" * MAX_LINE, "\ufeff"], ids=["a NUL byte", "a long line", "a mark of Windows"]
)
def test_what_knockd_would_read_otherwise_is_an_error(junk: str) -> None:
    """It stops at a NUL, splits long lines, and takes a byte order mark for a directive."""
    result = imported(f"{junk}# x\n[a]\nsequence = 1\ncommand = /a\n")
    assert (result.toml, [finding.line for finding in result.errors]) == ("", [1])


def test_a_key_in_letters_that_only_look_alike_is_unknown() -> None:
    """Upper case is ASCII's: a long s is no S."""
    assert [finding.line for finding in door("\u017fequence = 1").errors] == [3]


def test_a_file_of_a_thousand_doors_takes_no_time() -> None:
    """Linear in its size; half of them close the others."""
    rule = "INPUT -s %IP% -p tcp --dport {} -j ACCEPT"
    text = "".join(
        f"[o{n}]\nsequence={n}:udp\ncommand=iptables -A {rule.format(n)}\n"
        f"[c{n}]\nsequence={n + 5000}:udp\ncommand=iptables -D {rule.format(n)}\n"
        for n in range(1, 1001)
    )
    doors = tomllib.loads(imported(text).toml)["doors"]
    assert (len(doors), doors["c1000"]["closes"]) == (2000, ["o1000"])


# ---- any text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for one configuration after the other."""
    return tmp_path_factory.mktemp("any")


_WORDS = """
[a] [options] [A.b] [] sequence=7000,8000 Sequence=1:udp sequence=abc command= command_6= stop_command= cmd_timeout=3
start_command=iptables -I -D INPUT -s %IP% --dport 22 -p tcp -j ACCEPT ufw allow from to any port proto nft add rule
inet filter input ip saddr tcp dport accept element set { } timeout 5s firewall-cmd --add-rich-rule= 'rule" source
address=%IP% accept' tcpflags=syn tcpflags=!ack, target=::1 target=::ffff:1.2.3.4 target=224.0.0.1 /bin/x {src} # ; &&
one_time_sequences=/a\\b"c | $ \\ ' " \"\"\" \'\'\' = UseSyslog LogFile=/x
"""
WORDS = st.sampled_from([*_WORDS.split(), "\x00", "\x7f", "\u2028", "\udcff", "é"])
LINES = st.lists(st.one_of(WORDS, st.text(st.characters(blacklist_categories=()), max_size=4)), max_size=12).map(
    " ".join
)
COMMANDS = st.tuples(
    st.sampled_from(["command=", "target=::1\ncommand=", "target=0.0.0.0\ncommand_6=", "tcpflags=!syn\ncommand="]),
    st.sampled_from(
        [*OPENS.values(), *CLOSES.values(), *WIDER.values(), "/bin/a 'b\\\" c' é", "nft add element f s {%IP%}"]
    ),
    st.sampled_from(["", *(f"\nstop_command={command}" for command in (*CLOSES.values(), "/bin/b"))]),
).map("".join)
# Doors that get beyond their sequence, beside lines of anything.
TEXTS = st.one_of(
    st.lists(LINES, max_size=12).map("\n".join),
    st.lists(LINES, max_size=4).map(lambda found: "".join(f"[{line}]\nsequence=1\ncommand={line}\n" for line in found)),
    st.lists(COMMANDS, max_size=6).map(lambda found: "".join(f"[a]\nsequence=1\n{line}\n" for line in found)),
)


@settings(max_examples=300)
@given(TEXTS)
def test_any_text_is_errors_or_a_configuration_with_all_of_it(folder: Path, text: str) -> None:
    """Never an exception, broken TOML or a line that is gone; each door passes `check`, or there is a reason."""
    text = text.encode(errors="surrogatepass").decode(errors="surrogateescape")
    result = imported(text)
    if result.errors:
        assert (result.toml, result.doors) == ("", 0)
        return
    doors = tomllib.loads(result.toml).get("doors", {})
    assert result.doors == len(doors)
    assert not doors or [door.name for door in load(write(folder, result.toml)).doors] == list(doors)
    lines = result.toml.split("\n")
    for line in text.split("\n"):
        assert not line.strip(" \t\n\v\f\r") or original(line) in lines
    sections = [line.strip(" \t\n\v\f\r") for line in text.split("\n")]
    titles = [line for line in sections if line[:1] == "[" and line[-1:] == "]" and line != "[options]"]
    assert len(titles) == len(doors) + sum(line.startswith("# NOT CONVERTED") for line in lines)


@given(LINES)
def test_any_command_is_rules_an_argv_or_a_reason(command: str) -> None:
    """And a rule is one for the knocker."""
    try:
        found = understand(command, PROGRAMS.get)
    except CannotSayError:
        return
    assert found
    assert "%IP%" in command or not found.rules


# ---- beside the real knockd


def test_knockd_takes_these_ports_for_those_that_the_errors_name(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    """The real one, in a namespace: what it makes of each sequence that we refuse."""
    written = {"abc": 0, "12x": 12, "-5": 65531, "": 0, "0": 0}
    path = tmp_path / "knockd.conf"
    path.write_text("".join(f"[d{n}]\nsequence = 7000,{port}\n" for n, port in enumerate(written)) + "[d9]\n")
    done = hosts[0].run("knockd", "-D", "-i", "lo", "-c", str(path), check=False)
    messages = [finding.message for finding in imported(path.read_text()).errors]
    for n, port in enumerate(written.values()):
        assert f"d{n}: sequence: 7000:tcp,{port}:tcp" in done.stdout
        assert messages[n].endswith(f"knockd takes it for port {port}")
    assert "empty knock sequence" in done.stderr
    assert "has no sequence" in messages[-1]


REFUSED = {
    "a comment of another kind": "[a]\nsequence = 1\n; x\n",
    "an unknown key": "[a]\nsequence = 1\nsequense = 2\n",
    "an option at a door": "[a]\nsequence = 1\nlogfile = /x\n",
    "a door's key among the options": "[options]\nsequence = 1\n",
    "no section": "sequence = 1\n",
    "a section without a name": "[]\nsequence = 1\n",
    "no value": "[a]\nsequence\n",
    "a value for UseSyslog": "[options]\nUseSyslog = 1\n",
    "too many knocks": f"[a]\nsequence = {','.join(['7'] * 33)}\n",
    "too large a port": "[a]\nsequence = 65536\n",
    "another protocol": "[a]\nsequence = 1:icmp\n",
    "no protocol": "[a]\nsequence = 1:\n",
    "a blank between flags": "[a]\nsequence = 1\ntcpflags = syn, ack\n",
    "another flag": "[a]\nsequence = 1\ntcpflags = sin\n",
    "no sequence": "[a]\ncommand = x\n",
}
TAKEN = {
    "case": "[a]\nSEQUENCE = 1:UDP\ncOMMAND = /x\n",
    "blanks": "\t [a] \n  sequence=1 , 2: tcp ,\t3\n \n  # x\n",
    "carriage returns": "[a]\r\nsequence = 1\r\n\r\nUseSyslog\r\n",
    "twice": "[a]\nsequence = 1\nsequence = 2\n[a]\nsequence = 3\ntcpflags = syn\ntcpflags = !syn\n",
    "32 knocks": f"[a]\nsequence = {','.join(['7'] * 32)}\n",
    "options that are a door": "[Options]\nsequence = 1\n",
    "empty commands": "[a]\nsequence = 1\ncommand =\nstop_command_6=\n",
    "a long line": f"[a]\nsequence = 1\n{'#' * MAX_LINE}\n",
}


def test_what_knockd_refuses_is_refused_and_what_it_takes_is_taken(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    """The real one reads each of these files; where it takes one, it goes on to an interface that is not there."""
    path = tmp_path / "knockd.conf"
    for claim, text in (REFUSED | TAKEN).items():
        path.write_text(text, newline="")
        stderr = hosts[0].run("knockd", "-i", "none", "-c", str(path), check=False).stderr
        assert ("none" in stderr) == (claim in TAKEN), (claim, stderr)
        assert bool(imported(text).errors) == (claim in REFUSED), claim
