//go:build integration

package image

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cntr-attach/cntr-attach/fuse"
	"github.com/cntr-attach/cntr-attach/internal/bench/stargz"
	"github.com/cntr-attach/cntr-attach/internal/ns"
	"github.com/cntr-attach/cntr-attach/internal/oci"
)

// TestMain is also the process that lists a tree: a process that serves one must not walk over it.
func TestMain(m *testing.M) {
	if dir := os.Getenv("IMAGE_TEST_LIST"); dir != "" {
		if err := list(dir, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// list writes a line for each entry of a tree, with all that there is to know of it.
func list(dir string, w io.Writer) error {
	first := map[uint64]string{}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name := strings.TrimPrefix(path, dir)
		line := fmt.Sprintf("%q mode %o owner %d:%d", name, st.Mode, st.Uid, st.Gid)
		if name != "" { // the root's times are those of the unpacking
			line += fmt.Sprintf(" time %d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" to %q", target)
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" device %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		case unix.S_IFREG:
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" size %d sha256 %x", st.Size, sha256.Sum256(content))
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if _, seen := first[st.Ino]; !seen {
				first[st.Ino] = name
			}
			line += fmt.Sprintf(" links %d, of %q", st.Nlink, first[st.Ino])
		}
		names := make([]byte, 64<<10)
		n, err := unix.Llistxattr(path, names)
		if err != nil {
			return err
		}
		list := strings.FieldsFunc(string(names[:n]), func(r rune) bool { return r == 0 })
		slices.Sort(list)
		for _, name := range list {
			value := make([]byte, 64<<10)
			n, err := unix.Lgetxattr(path, name, value)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %s=%x", name, value[:n])
		}
		_, err = fmt.Fprintln(w, line)
		return err
	})
}

// listing is what list says of a tree.
func listing(t *testing.T, dir string) []string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "IMAGE_TEST_LIST="+dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("listing %s: %v, %s", dir, err, &stderr)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
}

// served mounts an image as a session does, and returns where.
func served(t *testing.T, name string) string {
	t.Helper()
	ref, err := ParseRef(name)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := Open(&Image{Name: name, Path: ref.Path, OCI: ref.OCI, Tag: ref.Tag}, ns.Identity{})
	if err != nil {
		t.Fatal(err)
	}
	server, err := fuse.New(fuse.Options{Files: tree.Files, Passthrough: true})
	if err != nil {
		t.Fatal(err)
	}
	device, mount, err := ns.MountFUSE(false, tree.SetID, "")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.MoveMount(int(mount.Fd()), "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal(err)
	}
	_ = mount.Close()
	done := make(chan error, 1)
	go func() { done <- server.Serve(device, fuse.Device) }()
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func script(t *testing.T, text string, args ...string) {
	t.Helper()
	cmd := exec.Command("bash", append([]string{"-euo", "pipefail", "-c", text, "bash"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// prelude defines what is in the images: all that a layer can have, and what later ones can do to it.
const prelude = `
	base() (
		cd "$1"; mkdir -p bin nodes etc d/sub o/old gone many/{a,b}/c; cp /usr/bin/busybox bin/; ln -s busybox bin/sh
		cp -a /var/lib/machines/slim/usr usr; cp -a /etc/systemd etc/
		for n in d/a d/b d/sub/x o/one o/old/two gone/x gone/y f many/a/c/x many/b/x; do echo "$n" >"$n"; done
		ln f g; ln d/b many/b/linked; ln -s /etc absolute; ln -s ../../../etc outside; ln -s nothing dangling
		mknod nodes/null c 1 3; mknod nodes/disk b 8 300; mkfifo nodes/fifo; mkdir -m 1777 sticky; mkdir -m 2750 group
		cp bin/busybox set; chown 7:70000 set; chmod 6755 set; chmod 000 d/a; : >empty
		head -c 3000000 /dev/urandom >random; truncate -s 5M holes; echo end >>holes
		setfattr -n user.note -v value f; setfattr -n user.binary -v 0x00ff0a f; cp /usr/bin/true capable; setcap cap_net_raw+ep capable
		mkdir -p "$(printf 'long%.0s' {1..30})/$(printf 'name%.0s' {1..30})/ü"; echo x >"$(printf 'n%.0s' {1..250})"; echo x >$'new\nline'
		touch -h -d 2001-02-03T04:05:06.789 d/b absolute nodes/null many/a; touch -d 1971-12-31T00:00:00Z o/one; chown -h 5:6 dangling
	)
	second() (
		cd "$1"; rm -r gone d/sub f; ln -s ../etc d/sub; mkdir f; echo inside >f/inside; rm -r o; mkdir o; echo new >o/new; ln g h
		chmod 640 many/b/x; rm many/a/c/x; chown 9:9 many; rm nodes/fifo; echo more >>random; rm absolute; echo file >absolute
	)
	third() (
		cd "$1"; mkdir gone; echo again >gone/z; rm -r many/a; mkdir -p many/a/c; rm g; echo other >g; mv d moved; rm -r o; echo file >o
	)
	# A build with a shell of the image's own. Only a tar file can bring what base has.
	build() {
		mkdir "$1/base" "$1/context"; base "$1/base"
		tar -C "$1/base" --xattrs --xattrs-include='*' -c . >"$1/context/base.tar"
		for n in second third; do { declare -f $n; echo "$n /"; } >"$1/context/$n"; done
		printf '%s\n' "FROM $2" 'COPY second third /' 'RUN ["/bin/busybox", "sh", "-e", "/second"]' 'RUN ["/bin/busybox", "sh", "-e", "/third"]' >"$1/context/Dockerfile"
	}
`

// makers make images with several tools. They leave a layout directory in $1/layout, tagged "latest", which umoci can unpack,
// and what is served, if that is something else.
var makers = map[string]struct{ script, served string }{
	"buildah": {`
		c=$(buildah from scratch)
		for n in base second third; do
			$n "$(buildah mount "$c")"; buildah commit --quiet "$c" "localhost/buildah:$n"; buildah rm "$c"; c=$(buildah from "localhost/buildah:$n")
		done
		buildah rm "$c"; buildah push --quiet localhost/buildah:third "oci:$1/layout:latest"; buildah rmi --all --force
	`, "oci:DIR/layout:latest"},
	"podman": {`
		build "$1" localhost/base:1; podman import --quiet "$1/context/base.tar" localhost/base:1
		podman build --quiet --network=none --ulimit=nofile=1024:1024 --ulimit=nproc=1024:1024 --tag localhost/third:latest "$1/context"
		podman save --quiet --format=oci-dir --output="$1/layout" localhost/third; podman save --quiet --format=docker-archive --output="$1/tar" localhost/third
		podman rmi --all --force
		umoci tag --image "$1/layout:localhost/third:latest" latest 2>/dev/null || umoci tag --image "$1/layout:latest" again
	`, "docker-archive:DIR/tar"},
	"docker": {`
		trap 'systemctl stop docker.service docker.socket containerd.service' EXIT; systemctl start docker; build "$1" base:1; docker import "$1/context/base.tar" base:1
		DOCKER_BUILDKIT=0 docker build --quiet --network=none --tag third:latest "$1/context"
		docker save --output="$1/tar" third:latest; docker rmi --force third:latest base:1
		mkdir "$1/layout"; tar -C "$1/layout" -xf "$1/tar"
	`, "docker-archive:DIR/tar:third"},
	"umoci": {`
		umoci init --layout "$1/layout"; umoci new --image "$1/layout:latest"; umoci unpack --image "$1/layout:latest" "$1/bundle"
		for n in base second third; do $n "$1/bundle/rootfs"; umoci repack --refresh-bundle --image "$1/layout:latest" "$1/bundle"; done
		mkdir "$1/more"; echo more >"$1/more/file"
		umoci insert --image "$1/layout:latest" --opaque "$1/more" /many; umoci insert --image "$1/layout:latest" --whiteout /usr
	`, "oci:DIR/layout"},
	// One plain layer, as mmdebstrap writes it, in an image by hand.
	"mmdebstrap": {`
		mkdir -p "$1/layout/blobs/sha256"; cd "$1/layout"
		tar -C /var/lib/machines/deb --xattrs --xattrs-include='*' --one-file-system -c . >"$1/deb.tar"
		blob() { sum=$(sha256sum "$1"); sum=${sum%% *}; size=$(stat -c %s "$1"); mv "$1" "blobs/sha256/$sum"; }
		blob "$1/deb.tar"; layer=$sum; layersize=$size
		printf '{"os":"linux","architecture":"%s","rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$(dpkg --print-architecture)" "$layer" >config; blob config
		printf '{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%s},
			"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:%s","size":%s}]}' "$sum" "$size" "$layer" "$layersize" >manifest
		blob manifest; printf '{"imageLayoutVersion":"1.0.0"}' >oci-layout
		printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,
			"annotations":{"org.opencontainers.image.ref.name":"latest"}}]}' "$sum" "$size" >index.json
		tar -c . >"$1/tar"
	`, "oci-archive:DIR/tar"},
}

// An image is served as umoci unpacks it.
func TestServedAsUnpacked(t *testing.T) {
	for tool, m := range makers {
		t.Run(tool, func(t *testing.T) {
			dir := t.TempDir()
			script(t, prelude+m.script+`
				umoci unpack --image "$1/layout:latest" "$1/unpacked"`, dir)
			same(t, listing(t, served(t, strings.Replace(m.served, "DIR", dir, 1))), listing(t, dir+"/unpacked/rootfs"))
		})
	}
}

// same compares what is served with what was unpacked.
func same(t *testing.T, got, want []string) {
	t.Helper()
	if len(got) < 40 {
		t.Errorf("only %d entries", len(got))
	}
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("served   %s", line)
		}
	}
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("unpacked %s", line)
		}
	}
	t.Logf("%d entries", len(got))
}

// What is served by the tables of contents of an image's layers is what umoci unpacks, who knows nothing of these.
func TestServedByTablesOfContents(t *testing.T) {
	dir := t.TempDir()
	script(t, prelude+`
		c=$(buildah from scratch)
		for n in base second third; do
			$n "$(buildah mount "$c")"; buildah commit --quiet "$c" "localhost/listed:$n"; buildah rm "$c"; c=$(buildah from "localhost/listed:$n")
		done
		buildah rm "$c"; buildah push --quiet --compression-format=gzip localhost/listed:third "oci:$1/gzip:latest"
		buildah push --quiet --compression-format=zstd:chunked --force-compression localhost/listed:third "oci:$1/chunked:latest"
		buildah rmi --all --force; umoci unpack --image "$1/gzip:latest" "$1/unpacked"`, dir)
	if err := stargz.Convert(dir+"/gzip", dir+"/stargz"); err != nil {
		t.Fatal(err)
	}
	script(t, `umoci unpack --image "$1/stargz:latest" "$1/unpacked.stargz"`, dir)
	copies := func() int {
		list, _ := filepath.Glob(oci.CacheDir + "/0/layers/*.data") // the pattern is one
		return len(list)
	}
	before := copies()
	t.Run("zstd:chunked", func(t *testing.T) {
		same(t, listing(t, served(t, "oci:"+dir+"/chunked")), listing(t, dir+"/unpacked/rootfs"))
	})
	t.Run("eStargz", func(t *testing.T) {
		want := slices.DeleteFunc(listing(t, dir+"/unpacked.stargz/rootfs"), func(line string) bool { return strings.HasPrefix(line, `"/stargz.index.json" `) })
		same(t, listing(t, served(t, "oci:"+dir+"/stargz")), want)
	})
	t.Run("damaged", func(t *testing.T) {
		damage(t, dir+"/chunked", dir+"/unpacked/rootfs/random")
		script(t, `rm -rf "$1"/files-*`, oci.CacheDir+"/0") // where they are whole
		tree := served(t, "oci:"+dir+"/chunked")
		out, err := exec.Command("cat", tree+"/random").CombinedOutput()
		if err == nil || !strings.HasSuffix(string(out), ": Input/output error\n") || bytes.Count(out, []byte("\n")) != 1 {
			t.Errorf("%v, %.100q", err, out)
		}
		if out, err := exec.Command("cmp", tree+"/holes", dir+"/unpacked/rootfs/holes").CombinedOutput(); err != nil {
			t.Errorf("%v, %s", err, out)
		}
	})
	if after := copies(); after != before {
		t.Errorf("%d layers were read as a whole", after-before)
	}
}

// damage changes a byte of a file, whose content does not compress, wherever it is in the layers of an image.
func damage(t *testing.T, layout, file string) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	blobs, _ := filepath.Glob(layout + "/blobs/sha256/*") // the pattern is one
	found := false
	for _, blob := range blobs {
		data, err := os.ReadFile(blob)
		if err != nil {
			t.Fatal(err)
		}
		if at := bytes.Index(data, content[1000:1100]); at >= 0 {
			found = true
			data[at] ^= 1
			if err := os.WriteFile(blob, data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !found {
		t.Fatalf("%s is not to be found in the layers", file)
	}
}
