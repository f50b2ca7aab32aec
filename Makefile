# make demo | test | lint | fuzz | bench | soak: each installs what it needs first (Debian 12 or newer), as root or through sudo.
# A PATH of our own: a python3 or a compiler from elsewhere on the caller's PATH is not the distribution's.
export PATH := /usr/sbin:/usr/bin:/sbin:/bin
export PYTHONDONTWRITEBYTECODE := 1
SHELL := /bin/bash

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
VENV := .venv
BIN := $(VENV)/bin
PEERS := $(VENV)/peers

RUN_PACKAGES := iproute2 netbase nftables python3 python3-click python3-nftables python3-rich python3-systemd python3-venv python3-watchdog util-linux
TEST_PACKAGES := dropbear-bin e2fsprogs iptables knockd logrotate nmap openssh-client openssh-sftp-server procps \
	python3-iptables strace systemd systemd-container tcpd tcpdump
# Programs that log, for tests and the benchmark, and firewalls: unpacked into $(PEERS) and never installed, for each of
# them would become a service of this host (and rsyslog and syslog-ng would remove one another).
PEER_PACKAGES := containerd dbus dbus-bin dbus-daemon dbus-system-bus-common docker.io fail2ban firewalld gir1.2-glib-2.0 \
	iptables-persistent netfilter-persistent python3-dbus python3-firewall python3-gi rsyslog runc syslog-ng-core ufw \
	ulogd2 ulogd2-json
# A mark of what is unpacked: where the list is another one, or how it is unpacked, it has another name.
UNPACKED := $(PEERS)/.unpacked-$(shell echo merged $(PEER_PACKAGES) | sha256sum | cut -c 1-12)
MISSING = $(shell for p in $(1); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done)
INSTALL = @missing="$(call MISSING,$(1))"; if [ -n "$$missing" ]; then \
	  $(SUDO) apt-get update -q && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $$missing; fi

PREFIX := /opt/logknock
COMMAND := /usr/local/bin/logknock

.PHONY: help setup setup-test demo test lint fuzz bench soak install uninstall clean

help:
	@echo "make demo    see a knock open a door, in network namespaces of its own"
	@echo "make test    the whole test suite (root, or a user with sudo)"
	@echo "make lint    ruff and mypy"
	@echo "make fuzz    a minute of any bytes at all for the parser"
	@echo "make soak    an hour of noise, knocks, reloads and restarts: does all of it hold? (ARGS='--minutes 10')"
	@echo "make bench   figures beside knockd's and fail2ban's, as a table and in bench.json"
	@echo "make setup, make setup-test   what running and testing need; the others do that first"
	@echo "make clean   away with what they made here"
	@echo "make install puts the program into $(PREFIX) and the command at $(COMMAND); make uninstall removes both"

# --no-install-recommends matters for knockd: it is a peer in tests, never a service of this host.
setup: $(VENV)/.runs

setup-test: $(VENV)/.tests $(UNPACKED)
	$(call INSTALL,$(TEST_PACKAGES))

$(VENV)/.runs: pyproject.toml
	$(call INSTALL,$(RUN_PACKAGES))
	/usr/bin/python3 -m venv --system-site-packages $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --root-user-action=ignore --editable .
	touch $@

$(VENV)/.tests: $(VENV)/.runs
	$(BIN)/pip install --quiet --disable-pip-version-check --root-user-action=ignore --editable '.[dev]'
	touch $@

# Of what they depend on only libraries are installed: those start nothing.
# Their files lie as on a host of today, where /lib is /usr/lib.
$(UNPACKED): | $(VENV)/.runs
	$(SUDO) apt-get update -q
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends --no-upgrade \
	  $$(apt-cache depends $(PEER_PACKAGES) | sed -n 's/^ *Depends: \(lib.*\)/\1/p')
	rm -rf $(PEERS) && mkdir -p $(PEERS)/packages $(PEERS)/usr/{bin,lib,sbin}
	ln -s usr/{bin,lib,sbin} $(PEERS)
	cd $(PEERS)/packages && apt-get -q -o APT::Sandbox::User=root download $(PEER_PACKAGES)
	set -o pipefail; for package in $(PEERS)/packages/*.deb; do \
	  dpkg --fsys-tarfile $$package | tar -xC $(PEERS) --keep-directory-symlink || exit; done
	rm -r $(PEERS)/packages
	touch $@

demo: setup
	$(SUDO) env PYTHONDONTWRITEBYTECODE=1 $(BIN)/logknock demo

test: setup-test
	$(SUDO) env PATH="$(PATH)" PYTHONDONTWRITEBYTECODE=1 $(BIN)/python -m pytest -p no:cacheprovider $(ARGS)

lint: setup-test
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/mypy --cache-dir=/dev/null

fuzz: setup-test
	$(BIN)/python -m tests.fuzz 60

bench: setup-test
	$(SUDO) env PATH="$(PATH)" PYTHONDONTWRITEBYTECODE=1 $(BIN)/python -m tests.bench $(ARGS)

soak: setup-test
	$(SUDO) env PATH="$(PATH)" PYTHONDONTWRITEBYTECODE=1 $(BIN)/python -m tests.soak $(ARGS)

install:
	$(call INSTALL,$(RUN_PACKAGES))
	$(SUDO) /usr/bin/python3 -m venv --clear --system-site-packages $(PREFIX)
	$(SUDO) $(PREFIX)/bin/pip install --quiet --disable-pip-version-check --root-user-action=ignore .
	$(SUDO) ln -sfn $(PREFIX)/bin/logknock $(COMMAND)
	$(SUDO) ln -sfn $(PREFIX)/bin/logknock-client $(COMMAND)-client

uninstall:
	$(SUDO) rm -rf $(PREFIX) $(COMMAND) $(COMMAND)-client

clean:
	rm -rf $(VENV) dist build bench.json
