# make demo | test | lint | bench: each installs what it needs first (Debian 12 or newer), as root or through sudo.
# A PATH of our own: a python3 or a compiler from elsewhere on the caller's PATH is not the distribution's.
export PATH := /usr/sbin:/usr/bin:/sbin:/bin
export PYTHONDONTWRITEBYTECODE := 1
SHELL := /bin/bash

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
VENV := .venv
BIN := $(VENV)/bin

RUN_PACKAGES := iproute2 netbase nftables python3 python3-click python3-nftables python3-rich python3-systemd python3-venv util-linux
TEST_PACKAGES := dropbear-bin e2fsprogs knockd nmap openssh-client openssh-sftp-server procps strace systemd tcpd tcpdump
MISSING = $(shell for p in $(1); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done)
INSTALL = @missing="$(call MISSING,$(1))"; if [ -n "$$missing" ]; then \
	  $(SUDO) apt-get update -q && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $$missing; fi

PREFIX := /opt/logknock
COMMAND := /usr/local/bin/logknock

.PHONY: help setup setup-test demo test lint bench install uninstall clean

help:
	@echo "make demo    see a knock open a door, in network namespaces of its own"
	@echo "make test    the whole test suite (root, or a user with sudo)"
	@echo "make lint    ruff and mypy"
	@echo "make bench   figures beside knockd's, as a table and in bench.json"
	@echo "make install puts the program into $(PREFIX) and the command at $(COMMAND); make uninstall removes both"

# --no-install-recommends matters for knockd: it is a peer in tests, never a service of this host.
setup: $(VENV)/.runs

setup-test: $(VENV)/.tests
	$(call INSTALL,$(TEST_PACKAGES))

$(VENV)/.runs: pyproject.toml
	$(call INSTALL,$(RUN_PACKAGES))
	/usr/bin/python3 -m venv --system-site-packages $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --root-user-action=ignore --editable .
	touch $@

$(VENV)/.tests: $(VENV)/.runs
	$(BIN)/pip install --quiet --disable-pip-version-check --root-user-action=ignore --editable '.[dev]'
	touch $@

demo: setup
	$(SUDO) env PYTHONDONTWRITEBYTECODE=1 $(BIN)/logknock demo

test: setup-test
	$(SUDO) env PATH="$(PATH)" PYTHONDONTWRITEBYTECODE=1 $(BIN)/python -m pytest -p no:cacheprovider $(ARGS)

lint: setup-test
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/mypy --cache-dir=/dev/null

bench: setup-test
	$(SUDO) env PATH="$(PATH)" PYTHONDONTWRITEBYTECODE=1 $(BIN)/python -m tests.bench $(ARGS)

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
