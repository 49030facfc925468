# Build, test and install cntr-attach.
#
#   make demo       the main job on a test host, nothing needs to be prepared (as root)
#   make test       all tests, those on a test host too (as root)
#   make test-vm    tests on a virtual machine with Debian's kernel (as root)
#   make check      linters; no root once "make setup" has run
#
# Every target installs what it lacks (make setup) and can be run again, quickly.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

prefix := /usr
DESTDIR :=
bindir := $(prefix)/bin
libexecdir := $(prefix)/lib/cntr-attach
unitdir := $(prefix)/lib/systemd/system
datadir := $(prefix)/share
# Where zsh looks for the completions of packages. Debian's does not look at where all others do.
zshdir := $(datadir)/zsh/$(if $(wildcard /etc/debian_version),vendor-completions,site-functions)

# The version is the newest tag, or what CHANGELOG.md works towards and the commit.
VERSION := $(shell git describe --tags --match 'v*' --dirty 2>/dev/null | sed 's/^v//')
ifeq ($(VERSION),)
VERSION := $(shell sed -n 's/^\#\# \[\([0-9][^]]*\)\].*/\1/p' CHANGELOG.md | head -n 1)$(shell git describe --always --dirty 2>/dev/null | sed 's/^/+/')
endif

commands := $(notdir $(wildcard cmd/*))
gobuild := go build -trimpath -buildvcs=false -ldflags '-X main.version=$(VERSION)'
# One test host of its own for each checkout's make test, so that the one of make testhost-up, and other
# checkouts', are left alone.
checkout := $(shell printf %s '$(CURDIR)' | cksum | cut -d ' ' -f 1)

# ---- What is needed ----

.PHONY: setup
setup: packages bin/tools/golangci-lint

# Debian packages, and Go where Debian has a recent one.
.PHONY: packages
packages:
	@.ci/setup

# golangci-lint has gofumpt, vet and staticcheck in it.
bin/tools/golangci-lint: .ci/tools/go.mod .ci/tools/go.sum | packages
	@echo 'building the linters (once, some minutes)'
	@mkdir -p bin/tools
	@cd .ci/tools && GOBIN='$(CURDIR)/bin/tools' go install -buildvcs=false tool
	@touch bin/tools/*

# ---- Programs ----

.PHONY: build
build: packages
	@$(MAKE) --no-print-directory programs

# Without setup, for packaging and for make install.
.PHONY: programs
programs:
	@mkdir -p bin
	@for name in $(commands); do \
		case $$name in \
		cntr-attachd) $(gobuild) -o bin/ "./cmd/$$name" ;; \
		*) CGO_ENABLED=0 $(gobuild) -o bin/ "./cmd/$$name" ;; \
		esac; \
	done

.PHONY: bin/testhost
bin/testhost: packages
	@go build -buildvcs=false -o $@ ./internal/testhost/cmd

# ---- Installation ----

# What only other programs start is not in PATH.
helpers := cntr-attachd cntr-session cntr-direct

.PHONY: install
install: programs
	@set -- $(filter-out $(helpers),$(commands)); [ $$# = 0 ] || \
		install -D -m 0755 -t '$(DESTDIR)$(bindir)' "$${@/#/bin/}"
	@set -- $(filter $(helpers),$(commands)); [ $$# = 0 ] || \
		install -D -m 0755 -t '$(DESTDIR)$(libexecdir)' "$${@/#/bin/}"
	@$(call data,$(wildcard units/*.service units/*.slice units/*.socket),$(unitdir))
	@$(call data,$(wildcard units/*.catalog),$(prefix)/lib/systemd/catalog)
	@$(call data,$(wildcard dbus/org.cntr.*.service),$(datadir)/dbus-1/system-services)
	@$(call data,$(wildcard dbus/org.cntr.*.conf),$(datadir)/dbus-1/system.d)
	@$(call data,$(wildcard dbus/org.cntr.*.xml),$(datadir)/dbus-1/interfaces)
	@$(call data,$(wildcard packaging/selinux/*.cil),$(datadir)/selinux/packages)
	@$(call data,$(wildcard dbus/org.cntr.*.policy),$(datadir)/polkit-1/actions)
	@$(foreach n,1 5 7 8,$(call data,$(wildcard packaging/man/*.$n),$(datadir)/man/man$n);)
	@$(call data,$(wildcard packaging/completions/*.bash),$(datadir)/bash-completion/completions)
	@$(call data,$(wildcard packaging/completions/_*),$(zshdir))
	@$(call data,$(wildcard packaging/completions/*.fish),$(datadir)/fish/vendor_completions.d)

# $(call data,FILES,DIRECTORY) installs files, if there are any.
data = set -- $1; [ $$\# = 0 ] || install -D -m 0644 -t '$(DESTDIR)$2' "$$@"

# ---- Linters ----

scripts = $(shell find . \( -path ./.git -o -path ./bin \) -prune -o -type f \
	-exec awk 'FNR == 1 && /^\#!\/bin\/(ba)?sh/ { print FILENAME } { nextfile }' {} +)

.PHONY: check
check: setup
	bin/tools/golangci-lint run --allow-parallel-runners ./...
	shellcheck $(scripts)
	.ci/verify-units
	.ci/vulnerabilities

# Lays out the source as make check wants it.
.PHONY: format
format: setup
	bin/tools/golangci-lint fmt

# ---- Tests ----

# A test that needs root, a mount, a machine or systemd is in a file with
#
#	//go:build integration
#
# and runs in the test host, with make test. All others run anywhere, as anybody, with make test-unit.

.PHONY: test-unit
test-unit: packages
	go test ./...

# $(on_testhost) boots a test host of this checkout's own for the rest of a recipe, with the product
# installed, and ends it whatever happens.
on_testhost = exec 9>bin/.test.lock; flock 9; \
	trap 'bin/testhost down' EXIT; \
	bin/testhost up 9>&-; \
	bin/testhost install
# One package at a time: some tests stop the daemon, or count what all others leave behind.
gotest := go test -tags integration -count 1 -p 1 -exec '$(CURDIR)/bin/testhost run'
TESTFLAGS ?=

.PHONY: test
test: export TESTHOST := test-$(checkout)
test: build bin/testhost
	@$(on_testhost); \
	if ! $(gotest) -timeout 20m $(TESTFLAGS) ./... 2>&1 | tee bin/test.log; then \
		echo '--- what failed ---'; .ci/failures bin/test.log; exit 1; fi

# The file system over io_uring, which is turned on for the whole host meanwhile. It wants Linux 6.14.
.PHONY: test-uring
test-uring: export TESTHOST := test-$(checkout)
test-uring: build bin/testhost
	@$(on_testhost); \
	$(gotest) -timeout 20m $(TESTFLAGS) ./fuse -transport=io_uring

# What wants a kernel of Debian's own: the shield, AppArmor and SELinux, accounting and limits, and the Debian package from its
# installation to its removal, on virtual machines, which are emulated where there is no KVM. Each takes some minutes, 15 at most.
.PHONY: test-vm
test-vm: export TESTHOST := test-$(checkout)
test-vm: setup-vm build bin/testhost deb
	@.ci/test-vm

.PHONY: setup-vm
setup-vm:
	@.ci/setup qemu-system-x86 e2fsprogs

# How fast a session is, next to the host and to cntr 1.6.0; then the Go benchmarks. The first takes about a quarter of
# an hour; BENCHFLAGS='--only=find --rounds=1' is quicker, bin/bench --help tells more.
BENCHFLAGS :=

.PHONY: bench
bench: export TESTHOST := test-$(checkout)
bench: build bin/testhost
	@CGO_ENABLED=0 go build -buildvcs=false -o bin/bench ./internal/bench/cmd
	@$(on_testhost); \
	bin/bench --json=bin/bench.json --markdown=bin/bench.md $(BENCHFLAGS); \
	$(gotest) -timeout 60m -run '^$$' -bench . $(TESTFLAGS) ./...

# The main job: a program in a machine that has nothing else in it is debugged with the host's tools.
.PHONY: demo
demo: export TESTHOST := test-$(checkout)
demo: build bin/testhost
	@$(on_testhost); \
	.ci/demo

# ---- Packages ----

# Into bin/deb and bin/rpm, built in a clean Debian 13.
.PHONY: deb rpm
deb rpm: packages
	@packaging/build $@

# Builds both once more, which must give the same bytes, and compares what they install. Then the RPM is installed and erased by rpm, and
# the Debian package on a test host of its own: installed, upgraded, downgraded, removed, with sessions that run.
.PHONY: test-packages
test-packages: export TESTHOST := packages-$(checkout)
test-packages: bin/testhost deb rpm
	@packaging/compare
	@packaging/test-rpm "$$(find bin/rpm -name '*.rpm' ! -name '*.src.rpm')"
	@exec 9>bin/.test.lock; flock 9; trap 'bin/testhost down' EXIT; \
	bin/testhost up 9>&-; \
	bin/testhost shell bash '$(CURDIR)/packaging/test' '$(CURDIR)'/bin/deb/cntr-attach_*_$$(dpkg --print-architecture).deb

# ---- A test host to work with ----

.PHONY: testhost-up
testhost-up: bin/testhost
	@bin/testhost up

.PHONY: testhost-install
testhost-install: build bin/testhost
	@bin/testhost up
	@bin/testhost install

.PHONY: testhost-shell
testhost-shell: testhost-up
	@bin/testhost shell

.PHONY: testhost-down
testhost-down: bin/testhost
	@bin/testhost down

.PHONY: clean
clean:
	rm -rf bin
