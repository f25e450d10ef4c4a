# All that these targets ask for is Python 3.11 or newer, GNU make 3.81 or newer, a POSIX sh and a package index.

ARGS   ?=
# One more than there are processors: a test that is waiting for something leaves its own to another.
JOBS   ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
PYTHON ?=

# Where nothing compiled is kept, as in many images, each process of the tests compiles the whole house again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo run dev check browser fuzz soak bench dist dist-check audit format lock clean gone
.NOTPARALLEL:

V   := .venv/bin
OXY := $(V)/python -m proxy
PIP := $(V)/python -u -m pip --disable-pip-version-check

help:  ## list the targets
	@echo 'make TARGET [ARGS="--port 9000"]'
	@sed -n 's/^\([a-z-]*\):.*  ## /  \1	/p' Makefile
	@echo 'ARGS is handed to oxy (demo, run, dev), pytest (check, dist-check), fuzz, soak, bench/run.py or uv (lock). PYTHON=... chooses the interpreter of a new .venv.'

# `exec` puts the proxy in the place of the recipe's shell: Ctrl-C and SIGTERM reach it, and its exit status is make's.

demo: .venv/.run  ## start the proxy in front of an embedded stand-in for the OpenAI API: no key, no network
	@exec $(OXY) --demo $(ARGS)

run: .venv/.run  ## start the proxy, with settings from the environment, .env.local and .env
	@exec $(OXY) $(ARGS)

dev: .venv/.dev  ## the same as run, and start it anew when proxy/ or an .env file changes
	@exec $(V)/python -c "$$RESTART" $(OXY) $(ARGS)

check: .venv/.dev  ## check format, lint, types, tests and coverage; CI runs the same
	@began=$$(date +%s); times=; \
	step() { \
		name=$$1; shift; start=$$(date +%s); echo "== $$name"; "$$@" || exit $$?; \
		times="$$times$$name $$(($$(date +%s) - start)) s, "; \
	}; \
	step format $(V)/ruff format --check .; \
	step lint $(V)/ruff check .; \
	step types $(V)/mypy --strict proxy tests release; \
	step tests $(V)/python -m pytest -n $(JOBS) --dist worksteal --cov --cov-report=term $(ARGS); \
	echo "== all well: $${times}in all $$(($$(date +%s) - began)) s"

browser: .venv/.dev  ## test the operator's pages in Chromium (Debian: apt install chromium); check does so where it is installed
	@exec $(V)/python -m pytest -rs tests/test_browser.py $(ARGS)

fuzz: .venv/.dev  ## throw mutated answers and forms at the parsers for a minute
	@exec $(V)/python -m tests.load.fuzz $(ARGS)

soak: .venv/.dev  ## play 200 exchanges at once for a minute, with faults on both sides; nothing may be left (ARGS="--way httpx")
	@exec $(V)/python -m tests.load.soak $(ARGS)

bench: .venv/.run bench/.venv/.ready  ## measure the proxy beside others; ARGS=--list names them, ARGS=--quick is short
	@exec $(V)/python bench/run.py $(ARGS)

dist: .venv/.run  ## build what is shipped into dist/: one file for any Python, cloud functions, wheel, sdist, SBOM
	@$(V)/python -m release.build

dist-check: .venv/.dev release/.venv/.ready dist  ## build once more, compare, and try each file of dist/ in an empty folder
	@$(V)/python -m pytest release tests/test_deploy.py -n $(JOBS) $(ARGS)

audit: release/.venv/.ready  ## ask for known vulnerabilities of the pinned packages
	@release/.venv/bin/python release/audit.py

format: .venv/.dev  ## format the code, sort its imports, apply ruff's safe fixes
	@$(V)/ruff check --fix-only .
	@$(V)/ruff format .

lock: .venv/.made  ## pin in requirements/ the newest versions that pyproject.toml allows
	@$(call install,requirements/lock.txt)
	@$(call compile,pyproject.toml,run)
	@$(call compile,pyproject.toml --extra azure --constraints requirements/run.txt,azure)
	@$(call compile,--group pyproject.toml:build,build)
	@$(call compile,--group pyproject.toml:lock,lock)
	@$(call compile,--group pyproject.toml:release,release)
	@$(call compile,pyproject.toml --group dev --constraints requirements/run.txt,dev)

clean:  ## remove what can be made again: .venv, caches, reports
	rm -rf .venv release/.venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov build dist
	find . \( -name .git -o -name .venv -o -name node_modules \) -prune -o -name __pycache__ -prune -exec rm -rf {} +

# Folders are watched, not files: many editors put a new file in the place of the old one, and a watch on that goes blind.
define RESTART
import glob, os, shlex, sys, watchfiles
watchfiles.run_process(
    ".", *glob.glob("proxy/**/", recursive=True), recursive=False, target=shlex.join(sys.argv[1:]), sigint_timeout=3,
    watch_filter=lambda _, path: path.endswith((".py", ".html", ".css", ".js", ".env", ".env.local")),
    callback=lambda changes: print("== changed:", *sorted({os.path.relpath(path) for _, path in changes}), flush=True),
)
endef
export RESTART

# Set-up. Each stamp in .venv stands for a finished step, done again only when what it was made from has changed.

.venv/.run: .venv/.made requirements/build.txt requirements/run.txt pyproject.toml
	@$(call install,requirements/build.txt requirements/run.txt)
	@$(install_oxy)
	@touch $@

.venv/.dev: .venv/.made requirements/dev.txt pyproject.toml
	@$(call install,requirements/dev.txt)
	@$(install_oxy)
	@touch .venv/.run $@

bench/.venv/.ready: .venv/.made bench/requirements.txt
	@echo 'Installing bench/requirements.txt: a Go toolchain, about 70 MB'
	@[ -e bench/.venv/bin/python ] || $(V)/python -m venv bench/.venv
	@bench/.venv/bin/python -m pip --disable-pip-version-check install --progress-bar on -r bench/requirements.txt
	@touch $@

release/.venv/.ready: .venv/.made requirements/release.txt
	@echo 'Installing requirements/release.txt'
	@$(V)/python -m venv --clear --without-pip release/.venv
	@$(PIP) --python release/.venv/bin/python install --quiet --require-hashes -r requirements/release.txt
	@touch $@

# A .venv whose interpreter is gone (a system upgrade) is made anew.
.venv/.made: $(shell [ -e $(V)/python ] || echo gone)
	@old=; bare=; \
	for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python); do \
		version=$$($$python -c 'import sys; print(".".join(map(str, sys.version_info[:3])))' 2>/dev/null) || continue; \
		$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { old="$${old:+$$old, }$$python ($$version)"; continue; }; \
		$$python -c 'import ensurepip, venv' 2>/dev/null || { bare="$${bare:+$$bare, }$$python ($$version)"; continue; }; \
		echo "Creating .venv with Python $$version"; \
		$$python -m venv --clear .venv && touch $@ && exit; \
		exit 1; \
	done; \
	if [ "$$bare" ]; then \
		echo "Found $$bare, but without the modules venv and ensurepip (Debian and Ubuntu: apt install python3-venv)."; \
	else \
		echo "Oxy needs Python 3.11 or newer and found $${old:-none}. Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; \
	fi >&2; \
	exit 1

# One line for each package as it arrives, overwritten by the next one on a terminal; pip's own complaints pass on stderr.
define install
	echo "Installing $(1)"; \
	rm -f .venv/.failed; n=0; total=$$(cat $(1) | grep -c '^[a-z].*=='); [ -t 1 ] && end='\r' || end='\n'; \
	{ $(PIP) install --require-hashes $(addprefix -r ,$(1)) || touch .venv/.failed; } | while read -r word name rest; do \
		case "$$word $$name" in \
			Collecting*) n=$$((n + 1)); printf "  %2d/%d %-40s$$end" $$n $$total "$$name" ;; \
			Requirement* | Ignoring*) n=$$((n + 1)) ;; \
			'Installing collected') printf '  %-46s\n' 'all here, unpacking them' ;; \
		esac; \
	done; \
	[ ! -e .venv/.failed ]
endef

install_oxy = $(PIP) install --quiet --no-deps --no-build-isolation --editable .

# Hashes of every platform's files go in; no address does, so that anyone's index or mirror will serve.
define compile
	echo "Pinning requirements/$(2).txt"; \
	$(V)/uv pip compile $(1) --output-file requirements/$(2).txt --quiet --upgrade --generate-hashes --no-emit-index-url \
		--universal --python-version 3.11 --python $(V)/python --system-certs --custom-compile-command 'make lock' $(ARGS)
endef
