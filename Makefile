# make demo | test | lint | fuzz | bench | soak: each installs what it needs first (Debian 12 or newer), as root or through sudo.
# A PATH of our own: a python3 or a compiler from elsewhere on the caller's PATH is not the distribution's.
export PATH := /usr/sbin:/usr/bin:/sbin:/bin
export PYTHONDONTWRITEBYTECODE := 1
SHELL := /bin/bash

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
VENV := .venv
BIN := $(VENV)/bin
PEERS := $(VENV)/peers

RUN_PACKAGES := iproute2 netbase nftables python3 python3-click python3-cryptography python3-nftables python3-rich python3-segno python3-systemd python3-venv \
	python3-watchdog util-linux
TEST_PACKAGES := curl dropbear-bin e2fsprogs git iptables jq knockd libfaketime librsvg2-bin logrotate man-db netcat-openbsd nmap oathtool openssh-client \
	openssh-sftp-server procps python3-iptables python3-pil python3-prometheus-client python3-zbar strace systemd systemd-container tcpd tcpdump
# What builds the site and the man pages, besides python3-click (debian/control names the same).
DOC_PACKAGES := python3-myst-parser python3-sphinx
# What builds the Debian packages, besides DOC_PACKAGES (debian/control names the same), and what looks at them.
BUILD_PACKAGES := build-essential debhelper dh-apparmor dh-python dpkg-dev pybuild-plugin-pyproject python3-click \
	python3-hatchling
TEST_PACKAGES += fish lintian zsh
# Programs that log, for tests and the benchmark, firewalls, fwknop, and those that read metrics: unpacked into $(PEERS) and never installed, for most of
# them would become a service of this host (and rsyslog and syslog-ng would remove one another).
PEER_PACKAGES := apparmor containerd dbus dbus-bin dbus-daemon dbus-system-bus-common docker.io fail2ban firewalld fwknop-client fwknop-server gir1.2-glib-2.0 \
	iptables-persistent netfilter-persistent prometheus prometheus-node-exporter python3-dbus python3-firewall python3-gi rsync rsyslog runc syslog-ng-core ufw \
	ulogd2 ulogd2-json
# A mark of what is unpacked: where the list is another one, or how it is unpacked, it has another name.
UNPACKED := $(PEERS)/.unpacked-$(shell echo merged $(PEER_PACKAGES) | sha256sum | cut -c 1-12)
# Ansible of two ages: the one that Debian 12 packages, on which the collection has to run, and one that ansible-lint takes.
ANSIBLE := 'ansible-core>=2.16' 'ansible-lint>=25.1'
OLD_ANSIBLE := 'ansible-core==2.14.*'
ANSIBLES := $(VENV)/.ansible-$(shell echo $(ANSIBLE) $(OLD_ANSIBLE) | sha256sum | cut -c 1-12)
MISSING = $(shell for p in $(1); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done)
INSTALL = @missing="$(call MISSING,$(1))"; if [ -n "$$missing" ]; then \
	  $(SUDO) apt-get update -q && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $$missing; fi

# Warnings are errors, links that lead nowhere among them. It is the distribution's Python and Sphinx, without a virtual
# environment, so that debian/rules can run the targets docs and man as they stand. -E: the options are read anew.
SPHINX = /usr/bin/python3 -m sphinx -q -E -W --keep-going -n -c docs -d $(DOCTREES)
DOCS := build/docs
DOCTREES := build/doctrees
MAN := build/man

VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' logknock/__init__.py)
PREFIX := /opt/logknock
COMMAND := /usr/local/bin/logknock

.PHONY: help setup setup-test demo test lint docs man deb wheel sdist collection fuzz bench soak install uninstall clean

help:
	@echo "make demo    see a knock open a door, in network namespaces of its own"
	@echo "make test    the whole test suite (root, or a user with sudo)"
	@echo "make lint    ruff and mypy"
	@echo "make collection   the Ansible collection, in dist"
	@echo "make fuzz    a minute each of any bytes at all for what parses log lines and SPA packets"
	@echo "make docs    the documentation as a site, $(DOCS)/index.html; make man: the man pages, in $(MAN)"
	@echo "make deb     the Debian packages, in dist; make wheel, make sdist: Python's, there too"
	@echo "make soak    an hour of noise, knocks, reloads and restarts: does all of it hold? (ARGS='--minutes 10')"
	@echo "make bench   figures beside knockd's, fwknopd's and fail2ban's, as a table and in bench.json"
	@echo "make setup, make setup-test   what running and testing need; the others do that first"
	@echo "make clean   away with what they made here"
	@echo "make install puts the program into $(PREFIX) and the command at $(COMMAND); make uninstall removes both"

# --no-install-recommends matters for knockd: it is a peer in tests, never a service of this host.
setup: $(VENV)/.runs

setup-test: $(VENV)/.tests $(UNPACKED) $(ANSIBLES)
	$(call INSTALL,$(TEST_PACKAGES) $(DOC_PACKAGES) $(BUILD_PACKAGES))

$(VENV)/.runs: pyproject.toml
	$(call INSTALL,$(RUN_PACKAGES))
	/usr/bin/python3 -m venv --system-site-packages $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --root-user-action=ignore --editable .
	touch $@

$(VENV)/.tests: $(VENV)/.runs
	$(BIN)/pip install --quiet --disable-pip-version-check --root-user-action=ignore --editable '.[dev]'
	$(BIN)/pip download --quiet --disable-pip-version-check --dest $(VENV)/wheels 'click>=8.1.3'
	touch $@

# Each finds the collection as it is in this checkout.
$(ANSIBLES):
	$(call INSTALL,python3-venv)
	set -e; for made in ansible ansible-2.14; do \
	  /usr/bin/python3 -m venv --clear $(VENV)/$$made; \
	  mkdir -p $(VENV)/$$made/collections/ansible_collections/logknock; \
	  ln -s ../../../../../packaging/ansible $(VENV)/$$made/collections/ansible_collections/logknock/logknock; done
	$(VENV)/ansible/bin/pip install --quiet --disable-pip-version-check --root-user-action=ignore $(ANSIBLE)
	$(VENV)/ansible-2.14/bin/pip install --quiet --disable-pip-version-check --root-user-action=ignore $(OLD_ANSIBLE)
	touch $@

# Of what they depend on only libraries are installed: those start nothing.
# Their files lie as on a host of today, where /lib is /usr/lib.
$(UNPACKED): | $(VENV)/.runs
	$(SUDO) apt-get update -q
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends --no-upgrade \
	  $$(apt-cache depends $(PEER_PACKAGES) | sed -n '/: libjs-/d; s/^ *Depends: \(lib.*\)/\1/p')
	rm -rf $(PEERS) && mkdir -p $(PEERS)/packages $(PEERS)/usr/{bin,lib,sbin}
	ln -s usr/{bin,lib,sbin} $(PEERS)
	cd $(PEERS)/packages && apt-get -q -o APT::Sandbox::User=root download $(PEER_PACKAGES)
	set -o pipefail; for package in $(PEERS)/packages/*.deb; do \
	  dpkg --fsys-tarfile $$package | tar -xC $(PEERS) --keep-directory-symlink || exit; done
	rm -r $(PEERS)/packages
	touch $@

demo: setup
	$(SUDO) env PYTHONDONTWRITEBYTECODE=1 $(BIN)/logknock demo

# Two at a time, file by file: most of what they do is to wait. What they share with the whole host they take by turns.
test: setup-test
	$(SUDO) env PATH="$(PATH)" PYTHONDONTWRITEBYTECODE=1 $(BIN)/python -m pytest -p no:cacheprovider -n 2 --dist loadfile $(ARGS)

lint: setup-test
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/mypy --cache-dir=/dev/null
	cd packaging/ansible && env PATH="$(CURDIR)/$(VENV)/ansible/bin:$(PATH)" \
	  ANSIBLE_COLLECTIONS_PATH="$(CURDIR)/$(VENV)/ansible/collections" ansible-lint --offline --profile production

docs:
	$(call INSTALL,$(DOC_PACKAGES) python3-click)
	$(SPHINX) -b html . $(DOCS)

# NAME.SECTION each, without directories for sections: logknock.8, logknock-knock.1, logknock.toml.5 ...
man:
	$(call INSTALL,$(DOC_PACKAGES) python3-click)
	$(SPHINX) -b man . $(MAN)

sdist wheel:
	$(call INSTALL,python3-hatchling)
	umask 022; /usr/bin/python3 -m hatchling build -t $@ -d dist && chmod a+r dist/*

# From the sdist, which is as clean as this tree is not, with packaging/debian where Debian has it. What it makes is the
# same to the last bit, wherever, whenever and by whom it is built.
deb: sdist
	$(call INSTALL,$(BUILD_PACKAGES) $(DOC_PACKAGES))
	set -e; umask 022; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; source=$$dir/logknock-$(VERSION); \
	  cp dist/logknock-$(VERSION).tar.gz $$dir/logknock_$(VERSION).orig.tar.gz; \
	  tar -xzf dist/logknock-$(VERSION).tar.gz -C $$dir --no-same-owner; \
	  cp -r $$source/packaging/debian $$source/debian; \
	  (cd $$source && env -u MAKEFLAGS -u MAKELEVEL dpkg-buildpackage -us -uc); \
	  cp $$dir/logknock*_$(VERSION)* dist

collection: $(ANSIBLES)
	mkdir -p dist && $(VENV)/ansible/bin/ansible-galaxy collection build --force --output-path dist packaging/ansible

fuzz: setup-test
	$(BIN)/python -m tests.fuzz 60

bench: setup-test
	$(SUDO) env PATH="$(PATH)" PYTHONDONTWRITEBYTECODE=1 $(BIN)/python -m tests.bench $(ARGS)

soak: setup-test
	$(SUDO) env PATH="$(PATH)" PYTHONDONTWRITEBYTECODE=1 $(BIN)/python -m tests.soak $(ARGS)

# Of the distribution's packages alone: nothing comes from elsewhere.
install: wheel
	$(call INSTALL,$(RUN_PACKAGES))
	$(SUDO) /usr/bin/python3 -m venv --clear --system-site-packages $(PREFIX)
	$(SUDO) $(PREFIX)/bin/pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-index \
	  dist/logknock-$(VERSION)-py3-none-any.whl
	$(SUDO) ln -sfn $(PREFIX)/bin/logknock $(COMMAND)
	$(SUDO) ln -sfn $(PREFIX)/bin/logknock-client $(COMMAND)-client

uninstall:
	$(SUDO) rm -rf $(PREFIX) $(COMMAND) $(COMMAND)-client

clean:
	rm -rf $(VENV) dist build bench.json
