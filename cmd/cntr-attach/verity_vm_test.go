//go:build integration && vm

package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// verityImage makes, in a directory of root's, disk.raw, a GPT with a file system and what it is verified with, as ids of the partitions tell, and
// bare.raw, the file system alone with the same beside it. What the file system has is not compressed, so nothing else finds out what was changed.
const verityImage = `mkdir -p "$2"; cd "$2"
	mksquashfs "$1" bare.raw -quiet -no-progress -noI -noD -noF -noX
	truncate --size=%4096 bare.raw
	root=$(veritysetup format bare.raw bare.verity | sed -n 's/^Root hash:[[:space:]]*//p')
	echo "$root" >bare.roothash
	id() { echo "${1:0:8}-${1:8:4}-${1:12:4}-${1:16:4}-${1:20:12}"; }
	data=$(($(stat -c %s bare.raw) / 512)) hashes=$((($(stat -c %s bare.verity) + 511) / 512)) behind=$(((data + 4095) / 2048 * 2048 + 2048))
	truncate --size=$(((behind + hashes + 2048) * 512)) disk.raw
	printf '%s\n' 'label: gpt' "start=2048, size=$data, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, uuid=$(id "${root:0:32}")" \
		"start=$behind, size=$hashes, type=2C7357ED-EBD2-46D9-AEC1-23D437EC2BF5, uuid=$(id "${root:32:32}")" | sfdisk --quiet disk.raw
	dd if=bare.raw of=disk.raw bs=512 seek=2048 conv=notrunc status=none
	dd if=bare.verity of=disk.raw bs=512 seek=$behind conv=notrunc status=none`

// flip changes a byte of $2 that is $3 bytes behind a text $1 in it.
const flip = `at=$(grep --text --byte-offset --only-matching --max-count=1 "$1" "$2" | head -n 1 | cut -d : -f 1)
	printf '\377' | dd of="$2" bs=1 seek=$((at + $3)) conv=notrunc status=none`

// signing has somebody sign the root hash, be trusted, and what they have signed be on a partition.
const signing = `rm -rf /etc/verity.d
	sign() {
		openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key -out signer.crt -subj /CN=signer 2>/dev/null
		printf %s "$(cat bare.roothash)" | openssl smime -sign -binary -noattr -nocerts -signer signer.crt -inkey key -outform der -out bare.roothash.p7s
	}
	trust() { mkdir /etc/verity.d; cp signer.crt /etc/verity.d/; }
	partition() {
		start=$(($(sfdisk --quiet --list --output=end disk.raw | tail -n 1) + 1))
		printf 'start=%d, size=16, type=41092B05-9FC8-4523-994F-2DEF0408B176\n' "$start" | sfdisk --quiet --append disk.raw
		printf '{"rootHash":"%s","signature":"%s"}' "$(cat bare.roothash)" "$(base64 --wrap=0 bare.roothash.p7s)" |
			dd of=disk.raw bs=512 seek="$start" conv=notrunc status=none
	}
	`

// verified returns the devices of the device mapper.
func verified(t *testing.T) (names []string) {
	t.Helper()
	for _, path := range glob(t, "/sys/block/dm-*/dm/name") {
		names = append(names, strings.TrimSpace(string(readFile(t, path))))
	}
	return names
}

// A disk image with verity data is verified as it is read.
func TestVerity(t *testing.T) {
	const dir = "/srv/verity"
	tree := filepath.Join(t.TempDir(), "tree")
	must(t, "bash", "-ec", `mkdir -p "$1/bin"; cp /usr/bin/busybox "$1/bin/"; for n in sh cat echo wc; do ln -s busybox "$1/bin/$n"; done
		echo data >"$1/small"; seq 300000 >"$1/large"`, "bash", tree)
	make := func() {
		t.Helper()
		must(t, "bash", "-ec", "rm -rf "+dir+"; "+verityImage, "bash", tree, dir)
	}
	t.Cleanup(func() { must(t, "rm", "-rf", dir, "/etc/verity.d") })
	const look = "cat /small; cat /large | wc -l"
	before := len(loops(t))
	for _, image := range []string{dir + "/disk.raw", dir + "/bare.raw"} {
		make()
		image := "--image=" + image
		one := start(t, image, slim, "sh", "-c", "echo ready; read end; "+look)
		two := start(t, image, userns, "sh", "-c", "echo ready; read end; "+look)
		if one.line() != "ready" || two.line() != "ready" {
			t.Fatal("no sessions")
		}
		if names := verified(t); len(names) != 1 || !strings.HasPrefix(names[0], "cntr-") {
			t.Errorf("%s: two sessions have the devices %q", image, names)
		}
		for _, r := range []*running{one, two} {
			if _, err := r.stdin.Write([]byte("\n")); err != nil {
				t.Fatal(err)
			}
			if a, b := r.line(), r.line(); a != "data" || b != "300000" {
				t.Errorf("%s: read %q, %q", image, a, b)
			}
			r.exit(runTimeout)
		}
		gone := func() {
			t.Helper()
			waitForNoScopes(t)
			must(t, "udevadm", "settle") // it looks at new devices
			if names, n := verified(t), len(loops(t)); len(names) > 0 || n != before {
				t.Errorf("%s: %q and %d loop devices are left of %d", image, names, n, before)
			}
		}
		gone()
		path := strings.TrimPrefix(image, "--image=")
		must(t, "bash", "-ec", flip, "bash", "^150000$", path, "2")
		if o := attachTo(t, image, slim, "sh", "-c", "cat /small; cat /large >/dev/null"); o.code != 1 || o.stdout != "data\n" || !strings.Contains(o.stderr, "Input/output error") {
			t.Errorf("%s, with a byte changed: %+v", image, o)
		}
		gone()
	}
	for what, c := range map[string]struct{ image, damage, want string }{
		"another root hash": {"bare", "sha256sum <small | cut -d ' ' -f 1 >bare.roothash", "cannot be mounted"},
		"changed hashes":    {"bare", "printf x | dd of=bare.verity bs=1 seek=4200 conv=notrunc status=none", "cannot be mounted"},
		"no hashes":         {"bare", "rm bare.verity", "no verity data that it can be compared with"},
		"an odd root hash":  {"bare", "echo 0123 >bare.roothash", "the kernel cannot verify it"},
		"an id of another":  {"disk", "sfdisk --quiet --part-uuid disk.raw 1 01234567-0123-0123-0123-0123456789ab", "cannot be mounted"},
		"a hash of another": {"disk", "seq 1 | sha256sum | cut -d ' ' -f 1 >disk.roothash", "another image's"},
		"a changed head":    {"disk", "printf x | dd of=disk.raw bs=1 seek=$((2048 * 512 + 40)) conv=notrunc status=none", "cannot be mounted"},
		"its own hash":      {"disk", "cp bare.roothash disk.roothash", ""},
		"a signature":       {"bare", "sign; trust", ""},
		"on a partition":    {"disk", "sign; trust; partition", ""},
		"of somebody":       {"bare", "sign", "the signature of its root hash is not good"},
		"of somebody else":  {"disk", "sign; trust; sign; partition", "the signature of its root hash is not good"},
	} {
		make()
		must(t, "bash", "-ec", "cd "+dir+"; echo x >small; "+signing+c.damage)
		o := attachTo(t, "--image="+dir+"/"+c.image+".raw", slim, "cat", "/small")
		if c.want == "" {
			if o.stdout != "data\n" {
				t.Errorf("%s: %+v", what, o)
			}
		} else if o.code != 125 || !strings.Contains(o.stderr, c.want) {
			t.Errorf("%s: %+v, want %q", what, o, c.want)
		}
	}
	waitForNoScopes(t)
	must(t, "udevadm", "settle")
	if names, n := verified(t), len(loops(t)); len(names) > 0 || n != before {
		t.Errorf("%q and %d loop devices are left of %d", names, n, before)
	}
}
