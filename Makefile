# The one interface to this repository; CI calls it and nothing else.

GO    ?= go
STATE ?= .leapcell
RUN   ?= .
BENCH ?= quick
N     ?= 50
RUNTIME ?=
FUZZTIME ?= 30s
QUICK ?= 1

# CGROUPS is the kind of control groups of this machine: v2, or hybrid with the controllers of v1.
CGROUPS = $(if $(filter cgroup2fs,$(shell stat -fc %T /sys/fs/cgroup)),v2,hybrid)

# RUNTIME is what makes the sandboxes of platforms that tests bring up: runc, crun or leapcell; the default one if empty.
export LEAPCELL_TEST_LAUNCHER = $(RUNTIME)

# VERSION is set once per release; a plain build says so.
VERSION ?= dev
PROGRAMS = leapcell leapcelld leapcell-edge nomad-driver-leapcell

.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: build ## bring the platform up on this machine, deploy a sample, visit it (as root)
	bin/leapcell up --state-dir $(STATE)

down: ## stop it; nothing is left running, the data stays (make down PURGE=1: the data goes too)
	@test -x bin/leapcell || $(MAKE) --no-print-directory build
	bin/leapcell down --state-dir $(STATE) $(if $(PURGE),--purge)

status: ## what runs of it, and what to do about what does not
	@bin/leapcell status --state-dir $(STATE)

build: ## all programs, into bin/
	$(GO) build -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ $(PROGRAMS:%=./cmd/%)
	CGO_ENABLED=0 $(GO) build -C tools/buildkit -trimpath -ldflags '-s -w' -o ../../bin/leapcell-build .

tools: build ## Nomad and Vault: found on PATH, or built from their pinned modules into bin/
	bin/leapcell tools

test: lint tools bucket unit e2e v2 ## all of it: lint, unit tests, contract and end-to-end tests, sandboxes with cgroup v2 (as root)

check: lint unit ## what needs neither root nor a platform

lint: ## formatting, vet, staticcheck, documentation that is generated
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$unformatted" || { echo "gofmt -w $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) build -C tools/lint -o ../../bin/staticcheck honnef.co/go/tools/cmd/staticcheck
	bin/staticcheck ./...

# -w leaves out what only a debugger reads: linking the tests is a good part of their time. vet is lint's, and would look
# at all dependencies once more. Packages wait more than they compute.
unit: ## unit tests, with the race detector; those that need Nomad, Vault or a bucket use what is on PATH or in bin/
	PATH="$(CURDIR)/bin:$$PATH" $(GO) test -race -short -p 4 -vet=off -ldflags=-w -timeout 10m $$($(GO) list ./... | grep -vE '/test/(contract|e2e|soak)$$')

bucket: # a real S3 service, built from its pinned module into bin/
	$(GO) build -C tools/s3 -trimpath -ldflags '-s -w' -o ../../bin/versitygw github.com/versity/versitygw/cmd/versitygw

s3: bucket ## static files in a bucket, on a real S3 service
	VERSITYGW_BIN="$(CURDIR)/bin/versitygw" $(GO) test -race -count=1 -timeout 10m ./api/cdn ./cmd/leapcelld

e2e: build tools ## contract and end-to-end tests on a platform of their own, less what takes long (as root; QUICK= for all, RUN=TestName for some, RUNTIME=crun for another launcher)
	LEAPCELL_TEST_QUICK=$(QUICK) $(GO) run ./test/with $(if $(filter .,$(RUN)),-bases) $(GO) test -count=1 -p 1 -parallel 6 -vet=off -ldflags=-w -timeout 40m -run '$(RUN)' ./test/contract ./test/e2e

contract: build tools ## only the runtime contract, one test a clause (RUN=TestMust_FS, RUNTIME=runc for another launcher)
	$(GO) run ./test/with $(GO) test -count=1 -v -parallel 3 -timeout 30m -run '$(RUN)' ./test/contract

v2: ## of make test-v2 what control groups touch most: sandboxes, networks, disks
	$(GO) run ./test/vm -jobs driver/cell,driver/network,driver/disk -limit 20m

test-v2: build tools ## the driver's tests and the contract's clauses in a virtual machine with cgroup v2 alone (RUN=. for all clauses, JOBS=cell for some tests, LIMIT=10m)
	$(GO) run ./test/vm $(if $(filter-out file,$(origin RUN)),-run '$(RUN)') $(if $(JOBS),-jobs '$(JOBS)') $(if $(LIMIT),-limit $(LIMIT))

clauses: build tools ## the runtime contract, and its results into docs/runtime-contract.md (RUN=TestMust_FS for some clauses, RUNTIME=runc for another launcher)
	$(GO) run ./test/with $(GO) test -count=1 -json -timeout 60m -run '$(RUN)' ./test/contract >bin/contract.json; \
	status=$$?; $(GO) run ./test/clauses '$(CGROUPS) $(or $(RUNTIME),leapcell)=bin/contract.json' && exit $$status

clauses-v2: build tools ## the same in a virtual machine with cgroup v2 alone (an hour and more; RUN=TestMust_FS for some clauses)
	$(GO) run ./test/vm -jobs contract -run '$(RUN)' -limit 4h -json bin/contract-v2.json; \
	status=$$?; $(GO) run ./test/clauses 'v2 $(or $(RUNTIME),leapcell)=bin/contract-v2.json' && exit $$status

soak: build tools ## a thousand instances through the driver, and what is left of them (as root; N=1000)
	LEAPCELL_SOAK_CYCLES=$(if $(filter-out file,$(origin N)),$(N),1000) $(GO) run ./test/with $(GO) test -count=1 -v -timeout 60m ./test/soak

bench: build tools ## benchmarks, all of them small (BENCH=full: at size; BENCH=cold, resume, warm, burst, routes, idle, mixed, chaos, build or start alone; BENCHFLAGS='-for 5m -seed 7')
ifeq ($(BENCH),start)
	$(GO) test -run '^$$' -bench . -benchtime $(N)x ./driver/cell
else
	$(GO) run ./test/bench -bench $(BENCH) $(if $(filter-out file,$(origin N)),-n $(N)) $(BENCHFLAGS)
endif

fuzz: ## each fuzz target for a while (FUZZTIME=30s)
	@for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep ^Fuzz); do \
			echo "$$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
		done; \
	done

docs: ## regenerate what is generated
	$(GO) test ./cmd/leapcell -run TestReference -update

clean: ## remove what was built
	rm -rf bin

.PHONY: help up down status build tools test check lint unit bucket s3 e2e contract clauses clauses-v2 v2 test-v2 soak bench fuzz docs clean
