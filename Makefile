# Builds, runs and tests crid. `make help` lists what there is.
#
# Works as root (sudo make ...) on a fresh Debian 12 with Go in /usr/local/go:
# what else is needed, hack/deps.sh installs.

export PATH := $(PATH):/usr/local/go/bin:/usr/local/sbin:/usr/sbin:/sbin
export HOME := $(or $(HOME),/root)

# The version is that of git; a source archive has a file VERSION instead.
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || cat VERSION 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.buildVersion=$(VERSION)
FUZZTIME ?= 20s
REF ?= HEAD

# crid-monitor is linked statically: the kernel has less to do each time that
# libcontainer starts it as a container's init, and the node needs no libseccomp.
MONITOR_TAGS := runc_nocriu,seccomp,netgo,osusergo
MONITOR_LDFLAGS := $(LDFLAGS) -linkmode external -extldflags "-static"

.PHONY: help deps build run clean-run check test unit kernel e2e kubelet crash test-vm fuzz bench clean FORCE
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install what building and running need (as root)
	@hack/deps.sh build run

build: deps bin/crid bin/crid-monitor bin/crid-verify bin/cni/.made ## bin/crid, bin/crid-monitor, bin/crid-verify and CNI's plugins in bin/cni

bin/crid: FORCE
	@echo '== building $@' >&2
	@CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o $@ ./cmd/crid

bin/crid-monitor: FORCE
	@echo '== building $@' >&2
	@CGO_ENABLED=1 go build -trimpath -buildvcs=false -tags $(MONITOR_TAGS) -ldflags '$(MONITOR_LDFLAGS)' -o $@ ./cmd/crid-monitor

bin/crid-verify: FORCE
	@echo '== building $@' >&2
	@CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w' -o $@ ./cmd/crid-verify

bin/cni/.made: hack/tools/go.mod hack/tools/go.sum
	@mkdir -p $(@D)
	CGO_ENABLED=0 go build -C hack/tools -trimpath -ldflags '-s -w' -o $(abspath $(@D))/ tool
	@touch $@

run: build ## start crid on this machine, run a web server in a pod, show it (as root)
	@hack/run.sh

clean-run: ## end what `make run` started and leave nothing of it
	@hack/run.sh clean

check: ## formatting, vet, linters, tidy modules
	@hack/verify.sh

test: ## every tier of tests (as root)
	@hack/test.sh unit kernel e2e kubelet crash vm

unit: ## every package's tests but those that need root
	@hack/test.sh unit

kernel: ## tests of the packages that touch the kernel (as root)
	@hack/test.sh kernel

e2e: ## crid, crid-monitor and CNI's plugins, driven as kubelet would (as root)
	@hack/test.sh e2e

kubelet: ## a real kubelet on crid, with static pods (as root; builds kubelet once)
	@hack/test.sh kubelet

crash: ## crid killed at each failpoint (as root)
	@hack/test.sh crash

test-vm: ## kernel and e2e in a VM with cgroup v2 and systemd (as root)
	@hack/test.sh vm

fuzz: ## every fuzz target for FUZZTIME (20s)
	@hack/fuzz.sh $(FUZZTIME)

bench: ## benchmarks of this tree against REF (HEAD)
	@hack/bench.sh $(REF)

clean: ## remove bin and what tests have left in the build folder
	rm -rf bin
