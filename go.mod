module github.com/cntr-attach/cntr-attach

go 1.24.0

require (
	github.com/cilium/ebpf v0.20.0
	github.com/coreos/go-systemd/v22 v22.7.0
	github.com/godbus/dbus/v5 v5.2.4
	github.com/hanwen/go-fuse/v2 v2.12.1
	github.com/lxc/go-lxc v0.0.0-00010101000000-000000000000
	github.com/moby/sys/capability v0.5.0
	github.com/spf13/pflag v1.0.10
	golang.org/x/sys v0.41.0
)

require (
	github.com/BurntSushi/toml v1.5.0
	github.com/containerd/stargz-snapshotter/estargz v0.16.3
	github.com/docker/cli v28.2.2+incompatible
	github.com/google/go-containerregistry v0.20.6
	github.com/klauspost/compress v1.18.0
	github.com/smallstep/pkcs7 v0.2.3
)

require (
	github.com/docker/distribution v2.8.3+incompatible // indirect
	github.com/docker/docker-credential-helpers v0.9.3 // indirect
	github.com/mitchellh/go-homedir v1.1.0 // indirect
	github.com/opencontainers/go-digest v1.0.0 // indirect
	github.com/pkg/errors v0.9.1 // indirect
	github.com/sirupsen/logrus v1.9.3 // indirect
	github.com/vbatts/tar-split v0.12.1 // indirect
	golang.org/x/sync v0.17.0 // indirect
)

// go-lxc has no releases. This is Debian's copy of it, package golang-gopkg-lxc-go-lxc.v2-dev, which .ci/setup
// installs: of 2022 in Debian 12, of 2024 in Debian 13.
replace github.com/lxc/go-lxc => /usr/share/gocode/src/gopkg.in/lxc/go-lxc.v2
