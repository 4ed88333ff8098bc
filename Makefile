# Everything a person or the CI does with nfw. Each target sets up what it needs first; the second time that is quick.

BIN := .venv/bin
# What a run remembers, apart for each user, so that `sudo make test` does not lock `make check` out of its own files.
CACHE := .venv/cache-$(shell id -u)
export RUFF_CACHE_DIR := $(CACHE)/ruff
export MYPY_CACHE_DIR := $(CACHE)/mypy
export HYPOTHESIS_STORAGE_DIRECTORY := $(CACHE)/hypothesis
PYTEST := $(BIN)/python -m pytest -o cache_dir=$(CACHE)/pytest

.PHONY: help setup demo test clients test-service check lint docs bench grade fuzz conformance lab install uninstall clean

help:
	@echo 'sudo make demo    nfw at work on real traffic between network namespaces, step by step'
	@echo 'sudo make test    all checks: lint, types, unit tests, tests with real packets, the service in a container'
	@echo 'sudo make clients   curl, OpenSSL, Python, Node, Java, Go and Chromium behind nfw, those that are installed'
	@echo '     make check   what of that needs no root'
	@echo 'sudo make test-service   of that the service: install, boot, upgrade, uninstall (SUITE=bookworm, trixie, noble ...)'
	@echo '     make docs    the references of policy and commands, from the program'
	@echo 'sudo make bench   measurements (BENCH=--engines: those that need no root)'
	@echo 'sudo make grade   148 ways to attack or break TLS inspection, on real packets (ONLY=certificates, ONLY=K06, QUICK=1 ...)'
	@echo '     make fuzz    whatever arrives, nothing raises, hangs or grows (SECONDS=60 of each target)'
	@echo '     make conformance   how far the rules agree with Suricata: every capture of its test suite (SURICATA=folder)'
	@echo 'sudo make lab     a client, a router and a server to play with'
	@echo 'sudo make install    nfw as a service of this machine, or its upgrade; systemd/README.md'
	@echo 'sudo make uninstall  take it away again; PURGE=1: with configuration, state and logs'
	@echo '     make setup   Debian packages (with sudo) and .venv; the others do this by themselves'
	@echo '     make clean   remove what the above left in this folder'

setup:
	@.ci/setup

demo: setup
	@$(BIN)/python -m tests.demo

# Where there can be no container for the service, that is said.
test: lint
	@tests/run $(CACHE) $(PYTEST)

check: lint
	$(PYTEST) tests/unit

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy engines nfw tests/lab tests/firewall.py tests/demo.py

docs: setup
	@$(BIN)/python -m tests.reference

# Rows on rules that people load; the files lie beside the checkout.
ETOPEN ?= ../shared/rulesets/et-open
BENCH ?=

bench: setup
	@$(BIN)/python -m tests.bench --etopen $(ETOPEN) $(BENCH)

# ONLY= names groups or cases; QUICK=1: smaller numbers where the list's own take minutes; IDLE= seconds that idle flows
# are left alone; JSON= a file for the results. What is expected of each is in tests/grade.
ONLY ?=
QUICK ?=
IDLE ?=
JSON ?=
GRADE = $(if $(ONLY),--only $(ONLY)) $(if $(QUICK),--quick) $(if $(IDLE),--idle $(IDLE)) $(if $(JSON),--json $(JSON))

grade: setup
	@$(BIN)/python -m tests.grade $(GRADE)

# Of each target; TARGETS= names some. With atheris in .venv coverage leads, else Hypothesis does.
SECONDS ?= 60
TARGETS ?=

fuzz: setup
	@$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(TARGETS)

# The data lies beside the checkout; what is known to pass is in tests/conformance/passing.txt.
SURICATA ?= ../shared/conformance/suricata

conformance: setup
	@$(BIN)/python tests/conformance/run.py $(SURICATA)

lab: setup
	@$(BIN)/python -m tests.lab shell

# Clients that are not installed are skipped: chromium and libnss3-tools, openjdk-17-jdk-headless, golang-go.
clients: setup
	$(PYTEST) tests/clients/clients.py

test-service: setup
	@tests/service/run

install:
	@systemd/install

uninstall:
	@systemd/install --uninstall

clean:
	rm -rf .venv build nfw.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
