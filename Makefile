# nemu: `make run` shows a machine, `make test` checks everything, `make help` lists the rest.
# Works on a fresh Debian 12, as root or with sudo; missing packages are installed first.

# Distribution packages; docs/dependencies.md says why each is here.
RUN_PACKAGES := python3 python3-venv qemu-system-x86 qemu-system-common passt
TEST_PACKAGES := acpica-tools busybox-static cloc dpkg-dev gcc git iproute2 libc6-dev linux-libc-dev make patch strace

JOBS ?= 2
BIN := .venv/bin
# A changed pyproject.toml changes the name of the stamp, whatever its date is after a checkout.
STAMP := $(shell sha256sum pyproject.toml | cut -c1-16)

.DEFAULT_GOAL := help
.PHONY: help run test lint bench shrink-qemu venv clean run-packages test-packages
.SUFFIXES:

help:
	@echo 'make run    boot the small guest: its CPUs, PCI devices, ACPI tables, no legacy ports'
	@echo 'make test   every test and linter ($(JOBS) at a time; JOBS=N)'
	@echo 'make lint   ruff and mypy'
	@echo 'make bench  every benchmark; results go to build/bench'
	@echo 'make shrink-qemu  prune the source package of QEMU, prove it, report'
	@echo 'make venv   put nemu and all that its tests need into .venv'
	@echo 'make clean  remove what was made here (~/.cache/nemu stays)'

run: .venv/run-$(STAMP)
	$(BIN)/nemu run

# The linters are among the tests, so that the summary at the end tells all.
test: venv
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: venv
	@mkdir -p build/bench
	@set -e; for script in benchmarks/*.py; do \
	    echo "== $$script"; \
	    $(BIN)/python "$$script" --json "build/bench/$$(basename "$$script" .py).json"; \
	done

# The whole proof on QEMU; the last line says where the report is.
shrink-qemu: venv
	@mkdir -p build
	$(BIN)/nemu shrink run qemu-virt --functions --install-deps --force --out build/shrink

venv: .venv/test-$(STAMP)

.venv/run-$(STAMP): | run-packages
	@$(make_venv)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@rm -f .venv/run-* && touch $@

.venv/test-$(STAMP): | run-packages test-packages
	@$(make_venv)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@rm -f .venv/run-* .venv/test-* && touch .venv/run-$(STAMP) $@

# The first Python that is new enough; a .venv whose Python went away is made again.
define make_venv
set -e; if ! $(BIN)/python -c '' 2>/dev/null; then \
    for python in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do \
        if "$$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi; \
        python=; \
    done; \
    if [ -z "$$python" ]; then echo 'nemu needs Python 3.11 or newer with its venv module' >&2; exit 1; fi; \
    rm -rf .venv; "$$python" -m venv .venv; \
fi
endef

run-packages:
	@$(call install,$(RUN_PACKAGES))

test-packages:
	@$(call install,$(TEST_PACKAGES))

# Nothing is asked, and apt is not even started when all is there.
define install
set -e; if ! command -v dpkg-query >/dev/null; then \
    echo 'not a Debian system; if something is missing, these packages have it: $(1)'; exit 0; \
fi; \
missing=; for package in $(1); do \
    case "$$(dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null)" in \
        installed) ;; *) missing="$$missing $$package" ;; \
    esac; \
done; \
if [ -z "$$missing" ]; then exit 0; fi; \
sudo=; if [ "$$(id -u)" != 0 ]; then sudo=sudo; fi; \
if [ -n "$$sudo" ] && ! command -v sudo >/dev/null; then \
    echo "as root: apt-get install$$missing" >&2; exit 1; \
fi; \
echo "installing$$missing"; \
$$sudo apt-get update -q=2 </dev/null; \
$$sudo env DEBIAN_FRONTEND=noninteractive \
    apt-get install -q=2 --yes --no-install-recommends $$missing </dev/null >/dev/null
endef

clean:
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis src/nemu.egg-info
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
