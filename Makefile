# Every command of the compendium. `make` alone prints the list, which is made from the lines that begin with `##`.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env reproduce study figures ship plan report rate check test lint lab pretrain fetch sweep instruments freeze bench status trace verify clean clean-env FORCE

# Variables are taken from the command line only, never from the environment: what a command does shows in the command.
# Nor does this make's command line reach a make that a test starts.
unexport MAKEFLAGS MFLAGS MAKELEVEL

## the scale of the run: smoke, nano, study; on photos single-gpu, paper
PROFILE = nano
## one experiment, by the name of its notebook, such as 01_variance; empty: all
ONLY =
## where real pairs come from: scenes, photos; empty: as PROFILE says
WORLD =
## the folder of your photos and captions, for WORLD=photos; empty: as PROFILE says
DATA =
## the folder of the base models; empty: data/models/WORLD
MODELS =
## changes to settings of the profile, such as SET="seeds=3 generations=4"
SET =
## the store: everything that was made, kept by what it was made from
RUNS = runs
## tables and executed notebooks
RESULTS = data/results/$(place)
## figures
FIGURES = figures/$(place)
## folder of the site
SITE = site/$(place)
## for make reproduce: notebooks at once; empty: one a core, on a GPU one
JOBS =
## for make study: chains at once; empty: one a core, on a GPU a few
WORKERS =
## for make study: GPUs that one chain uses together, chains one by one; empty: one
GPUS =
## for make study: begin no chain that would not end in so many minutes; empty: no limit
MINUTES =
## for make study: a folder with tables of earlier runs, whose chains are not run again
BEFORE =
## for make study: address of a dask scheduler; empty: processes on this machine
SCHEDULER =
## for make pretrain: only these, such as generator-v,score; empty: all that are missing
STAGES =
## for make fetch: 1: only say what would be fetched
DRY =
## for make fetch: https://... instead of the hub, HOST=https://... of another host
MIRROR =
## for make fetch: a folder like data/, such as another checkout's, instead of a network
FROM =
## for make fetch: only these, such as clip,coco-2017; empty: what PROFILE needs
WHAT =
## for make trace: a row of the result table
ROW =
## for make trace: the id of a claim, such as C1
CLAIM =
## for make trace: a figure file
FIGURE =
## for make verify: only some of its parts a to d, such as PARTS=a,c; empty: all
PARTS =
## for make verify: yes: in part b all base models and subsets (many minutes)
EVERY =
## for make rate: two or more, such as recursive,real; or a=folder,b=folder of pictures
ARMS =
## for make rate: the generation of the pictures; empty: the last
GENERATION =
## for make rate: tasks of each of its three questions; empty: 24, if there are as many
TASKS =
## for make check: folders or Parquet files of pictures, generation 0 first
GENS =
## for make check: real pictures, a folder or a Parquet file; empty: none
REAL =
## for make check: inception, clip or dino; empty: the judge of scenes
SPACE =
## for make check: folder of inception/, clip/, dino/; empty: that of make fetch
INSTRUMENTS =
## for make check: share of checks that may raise a false alarm; empty: 0.05
ALPHA =
## for make check: the folder of its page and JSON; empty: check
OUT =
## for make test: arguments for pytest, such as ARGS="-k store"
ARGS =
## a further package index for make env, such as one with CPU builds of torch
INDEX =
## the Python, 3.11 to 3.13, that make env builds with
PYTHON = python3
## no: use PYTHON with the packages it has (conda, a GPU machine) and build no .venv
VENV = yes

# nano, study, ...; a world that is not the profile's own has folders of its own: nano-photos
place = $(PROFILE)$(if $(filter-out scenes,$(WORLD)),-$(WORLD))

ifeq ($(filter yes no,$(VENV)),)
$(error VENV is yes or no, not '$(VENV)')
endif
ifeq ($(VENV),yes)
PY = .venv/bin/python
ENV = .venv/mmcollapse.installed
else
PY = PYTHONPATH="$(CURDIR)/src$${PYTHONPATH:+:$$PYTHONPATH}" $(PYTHON)
ENV =
endif

# Empty variables are left out, so that the program's own default holds.
option = $(if $($(1)),--$(2) '$($(1))')
OPTIONS = --profile '$(PROFILE)' $(call option,ONLY,only) $(call option,WORLD,world) $(call option,DATA,data) $(call option,MODELS,models) --runs '$(RUNS)' \
	--results '$(RESULTS)' --figures '$(FIGURES)' $(foreach pair,$(SET),--set '$(pair)')

help:
	@awk '/^## / { text = substr($$0, 4); next } \
	  text && /^[A-Z]+ =/ { name = $$1; sub(/^[A-Z]+ = ?/, ""); variables = variables sprintf("  %-32s %s\n", name "=" $$0, text) } \
	  text && /^[a-z-]+:/ { sub(/:.*/, ""); targets = targets sprintf("  %-12s %s\n", $$0, text) } \
	  { text = "" } \
	  END { printf "make TARGET [VARIABLE=value ...]\n\ntargets\n%s\nvariables, with their defaults\n%s", targets, variables }' \
	  $(firstword $(MAKEFILE_LIST))

## build .venv from requirements.lock; the other targets do it themselves when it is missing
env: $(ENV)
	@echo "make env: ready, $$($(PY) -V)"

## run the experiments of PROFILE, then draw their figures
reproduce: $(ENV)
	$(PY) -m mmcollapse run $(OPTIONS) $(call option,JOBS,jobs)

## all chains of PROFILE, many at once, no notebooks: what BEFORE lacks, as much as MINUTES allow
study: $(ENV)
	$(PY) -m mmcollapse study $(OPTIONS) $(call option,WORKERS,workers) $(call option,GPUS,gpus) $(call option,MINUTES,minutes) \
	  $(call option,BEFORE,before) $(call option,SCHEDULER,scheduler)

## draw the figures again, from the tables in RESULTS alone
figures: $(ENV)
	$(PY) -m mmcollapse figures $(OPTIONS)

## put the results in RESULTS where git keeps them, with the samples that figures show, and draw the figures
ship: $(ENV)
	$(PY) -m mmcollapse ship $(OPTIONS)

## a static site of verdicts, gates, figures, notebooks and provenance, in SITE
report: $(ENV)
	$(PY) -m mmcollapse report $(OPTIONS) --site '$(SITE)'

## a page on which people judge pictures of ARMS, blind, and its key, in RESULTS/ratings
rate: $(ENV)
	@$(PY) -m mmcollapse rate $(OPTIONS) $(call option,ARMS,arms) $(call option,GENERATION,generation) $(call option,TASKS,tasks)

## what the experiments of PROFILE come to, before anything is run: counts, hours, memory, disk
plan: $(ENV)
	@$(PY) -m mmcollapse plan $(OPTIONS)

## what is done and what is missing
status: $(ENV)
	@$(PY) -m mmcollapse status $(OPTIONS)

## from a number, figure or verdict to its run: ROW=..., FIGURE=... or CLAIM=...
trace: $(ENV)
	@$(PY) -m mmcollapse trace $(OPTIONS) $(call option,ROW,row) $(call option,FIGURE,figure) $(call option,CLAIM,claim)

## compute the numbers in RESULTS again on this machine, and fail where one does not match
verify: $(ENV)
	@$(PY) -m mmcollapse verify $(OPTIONS) $(call option,PARTS,parts) $(if $(filter yes,$(EVERY)),--every)

## open the notebooks in JupyterLab
lab: $(ENV)
	$(PY) -m jupyterlab notebooks

## train the base models anew from the world (on a GPU)
pretrain: $(ENV)
	$(PY) -m mmcollapse pretrain $(OPTIONS) $(call option,STAGES,stages)

## bring here, and check, what PROFILE needs from elsewhere; afterwards no run needs a network
fetch: $(ENV)
	@$(PY) -m mmcollapse fetch --profile '$(PROFILE)' $(call option,ONLY,only) $(call option,WORLD,world) \
	  $(call option,DATA,data) $(foreach pair,$(SET),--set '$(pair)') $(if $(filter-out 0 no,$(DRY)),--dry) \
	  $(foreach url,$(MIRROR),--mirror '$(url)') $(call option,FROM,from) $(call option,WHAT,what)

## choose the recipe's learning rate and steps, on pilot seeds of the real arm (on a GPU)
sweep: $(ENV)
	$(PY) -m mmcollapse sweep $(OPTIONS)

## test the metrics on real data damaged by known amounts, and real against real
instruments: $(ENV)
	$(PY) -m mmcollapse instruments $(OPTIONS)

## freeze the claims file before a study
freeze: $(ENV)
	$(PY) -m mmcollapse freeze

## speed on this machine: models, and metrics beside clean-fid
bench: $(ENV)
	@$(PY) -m mmcollapse bench $(OPTIONS)

## are the sets in GENS, of any origin, collapsing? A page in check/, and failure (3) if they are
check: $(ENV)
	@$(PY) -m mmcollapse check $(foreach gen,$(GENS),'$(gen)') $(call option,REAL,real) $(call option,SPACE,space) \
	  $(call option,INSTRUMENTS,instruments) $(call option,ALPHA,alpha) $(call option,OUT,out)

## run the tests
test: $(ENV)
	$(PY) -m pytest $(ARGS)

## check style and that no notebook holds outputs; changes nothing
lint: $(ENV)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m nbstripout --verify notebooks/*.ipynb

# git removes only what it does not track; a folder outside the checkout is the user's to remove.
## remove RUNS, SITE, caches, and untracked files in RESULTS and FIGURES; never a tracked file
clean:
	@git ls-files --error-unmatch Makefile >/dev/null 2>&1 || \
	  { echo "make clean: only in a git checkout, which knows the tracked files; remove $(RUNS) yourself" >&2; exit 1; }
	@for folder in '$(RUNS)' '$(RESULTS)' '$(FIGURES)' '$(SITE)'; do \
	  if [ ! -d "$$folder" ]; then continue; fi; \
	  case "$$(cd "$$folder" && pwd -P)/" in \
	    "$$(pwd -P)/"?*) git clean -fdxq -- "$$folder";; \
	    *) echo "make clean: $$folder is not a folder inside the checkout; left as it is";; \
	  esac; \
	done
	@git clean -fdXq -- .pytest_cache .ruff_cache src tests notebooks

## remove .venv
clean-env:
	rm -rf .venv

# The environment. `.venv/requirements.lock` is a copy of the lock, written when everything in it is installed: if it is
# missing or differs from the lock, the environment is built from scratch, so neither an interrupted build nor an outdated
# one is taken for finished. FORCE compares on every call, by content and not by date.
PIP = .venv/bin/python -m pip install --disable-pip-version-check --no-input
SUPPORTED = "Python 3.11."* | "Python 3.12."* | "Python 3.13."*

.venv/requirements.lock: FORCE
	@if [ "$$(cat requirements.lock)" = "$$(cat $@ 2>/dev/null)" ] && [ -x .venv/bin/python ]; then exit 0; fi; \
	fail() { echo "make env: $$1" >&2; exit 1; }; \
	for python in '$(PYTHON)' $(if $(filter python3,$(PYTHON)),python3.13 python3.12 python3.11) ''; do \
	  version=$$("$$python" -V 2>&1); case "$$version" in $(SUPPORTED)) break;; esac; \
	done; \
	[ "$$python" ] || fail "$(PYTHON) is not Python 3.11, 3.12 or 3.13; install one of these and name it: make PYTHON=python3.12"; \
	minor=$${version#Python }; minor=$${minor%.*}; \
	"$$python" -c 'import venv, ensurepip' 2>/dev/null || \
	  fail "$$python has no venv module; install it (Debian, Ubuntu: apt install python$$minor-venv), then try again"; \
	echo "make env: building .venv with $$version from requirements.lock; this takes some minutes, see .venv/pip.log"; \
	rm -rf .venv && mkdir .venv && "$$python" -m venv .venv >.venv/pip.log 2>&1 || \
	  fail "$$python could not make .venv ($$(tail -n 1 .venv/pip.log)); mend that or name another Python: make PYTHON=..."; \
	$(PIP) $(if $(INDEX),--extra-index-url '$(INDEX)') -r requirements.lock >>.venv/pip.log 2>&1 || { \
	  if grep -qiE 'no space left|disk quota' .venv/pip.log; \
	  then fail "the disk is full; make room (3 GB, more with CUDA), then try again"; \
	  elif grep -q 'connection broken by' .venv/pip.log; \
	  then fail "no package index could be reached; connect to the network or name an index (make INDEX=URL), then try again"; \
	  else fail "$$(grep ERROR .venv/pip.log | tail -n 1); see .venv/pip.log, or name a further index (make INDEX=URL)"; fi; }; \
	cp requirements.lock $@

# The package itself, in place and without network; again when its metadata change.
.venv/mmcollapse.installed: .venv/requirements.lock pyproject.toml
	@$(PIP) --no-deps --no-build-isolation -e . >>.venv/pip.log 2>&1 || \
	  { echo "make env: mmcollapse could not be installed ($$(tail -n 1 .venv/pip.log)); see .venv/pip.log" >&2; exit 1; }
	@touch $@
