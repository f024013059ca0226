# Everything that people and CI do here. It needs go and make; the tools are
# built from the versions below, the C compiler and the bench's programs come
# from apt-get where they are missing and we are root (.ci/need).
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --warn-undefined-variables --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := all

BIN := .tmp/bin

# time for each fuzz target
FUZZTIME ?= 30s
# time and seed for `chaos`; no seed: another one each time
CHAOSTIME ?= 2m
CHAOSSEED ?=
# the commit that `breaking` compares with
BASE ?= main

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: all
all: build test lint ## build, test and lint (what `make` does)

.PHONY: build
build: ## build everything, the static binary into bin/
	go build ./...
	CGO_ENABLED=0 go build -trimpath -o bin/ringmod ./cmd/ringmod

# The race detector needs cgo, hence the C compiler. The simulator plays 5 seeds
# under it, and 50 and those that have failed once without. With cmd/ringmod/default.pgo everything would be
# compiled twice.
.PHONY: test
test: ## test with the race detector; needs no network, takes under 10 minutes
	@.ci/need gcc gcc libc6-dev
	@.ci/need git git ca-certificates
	CGO_ENABLED=1 go test -race -pgo=off -shuffle=on -short -timeout 20m ./...
	go test -pgo=off -short -run '^Test(Seeds|Regressions)$$' ./test/sim

# Without the race detector: it would make the long suites several times longer
# and falsify what they measure, memory above all. `test` has it.
.PHONY: test-long
test-long: ## the long suites too; needs no network
	go test -count=1 -pgo=off -timeout 60m -skip '^TestReal' ./...

.PHONY: e2e
e2e: ## the real go command against the real upstream; under CI=true an unreachable one fails
	go test -count=1 -pgo=off -timeout 30m -run '^TestReal' ./test/...

# The log of the test begins with the seed: make chaos CHAOSSEED=… draws the
# same faults again, though not the same moments. Each kind happens once at least,
# which takes two minutes, however short CHAOSTIME is.
.PHONY: chaos
chaos: ## random faults on a cluster of real processes for CHAOSTIME, 2m by default; needs root
	CHAOSTIME=$(CHAOSTIME) CHAOSSEED=$(CHAOSSEED) go test -count=1 -v -timeout 0 -run '^TestChaos$$' ./test

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME, 30s by default
	@.ci/fuzz $(FUZZTIME)

.PHONY: bench
bench: ## benchmarks of ring, then ringmod beside nginx
	@.ci/need nginx nginx
	@.ci/need wrk wrk
	go test -run='^$$' -bench=. -benchmem ./ring/...
	go run ./test/bench

.PHONY: profile
profile: ## draw up cmd/ringmod/default.pgo, by which go build makes hits cheaper
	@.ci/need nginx nginx
	@.ci/need wrk wrk
	go run ./test/bench -rows cluster -runs 2 -time 5s -profile cmd/ringmod/default.pgo

.PHONY: lint
lint: $(BIN)/golangci-lint $(BIN)/buf ## check style, dependency direction, proto and go.mod
	$(BIN)/golangci-lint run
	$(BIN)/buf lint
	$(BIN)/buf format -d --exit-code
	go mod tidy -diff

.PHONY: fmt
fmt: $(BIN)/golangci-lint $(BIN)/buf ## format Go and proto
	$(BIN)/golangci-lint fmt
	$(BIN)/buf format -w

.PHONY: generate
generate: $(BIN)/buf $(BIN)/protoc-gen-go $(BIN)/protoc-gen-go-grpc ## generate Go from proto
	$(BIN)/buf generate

.PHONY: checkgenerate
checkgenerate: generate ## fail when proto/ is not what is committed
	@changed=$$(git status --porcelain proto); \
	if [[ -n $$changed ]]; then \
		echo "checkgenerate: run make generate and commit:" >&2; echo "$$changed" >&2; exit 1; \
	fi

# The base is unpacked because buf cannot read the .git file of a work tree.
.PHONY: breaking
breaking: $(BIN)/buf ## fail when proto breaks what BASE (main) has
	@git rev-parse --verify --quiet '$(BASE)^{commit}' >/dev/null || \
		{ echo "breaking: no commit $(BASE) here: fetch it or set BASE" >&2; exit 1; }
	@if ! git cat-file -e '$(BASE):proto' 2>/dev/null; then \
		echo "breaking: $(BASE) has no proto yet, there is nothing to break"; \
	else \
		rm -rf .tmp/base; mkdir -p .tmp/base; \
		git archive '$(BASE)' proto buf.yaml | tar -x -C .tmp/base; \
		echo "$(BIN)/buf breaking --against .tmp/base"; $(BIN)/buf breaking --against .tmp/base; \
	fi

.PHONY: vuln
vuln: $(BIN)/govulncheck ## look for known vulnerabilities in what we call
	@.ci/vuln $(BIN)/govulncheck

.PHONY: clean
clean: ## remove what make has built, the tools included
	rm -rf bin .tmp

.PHONY: tools
tools: ## install the pinned tools into .tmp/bin

# $(call tool,name,package,version): a stamp that carries the version stands for
# the binary, so that a tool is built once and again when its version changes.
define tool
tools: $(BIN)/$(1)
$(BIN)/$(1): $(BIN)/.$(1)@$(3) ;
$(BIN)/.$(1)@$(3):
	@mkdir -p $(BIN)
	@rm -f $(BIN)/.$(1)@*
	GOBIN='$(CURDIR)/$(BIN)' go install $(2)@$(3)
	@touch $$@
endef
$(eval $(call tool,buf,github.com/bufbuild/buf/cmd/buf,v1.73.0))
$(eval $(call tool,golangci-lint,github.com/golangci/golangci-lint/v2/cmd/golangci-lint,v2.15.0))
$(eval $(call tool,govulncheck,golang.org/x/vuln/cmd/govulncheck,v1.8.0))
$(eval $(call tool,protoc-gen-go,google.golang.org/protobuf/cmd/protoc-gen-go,v1.36.12))
$(eval $(call tool,protoc-gen-go-grpc,google.golang.org/grpc/cmd/protoc-gen-go-grpc,v1.6.2))
