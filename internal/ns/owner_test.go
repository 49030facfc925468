//go:build integration

package ns

import (
	"bufio"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestOwnershipOf(t *testing.T) {
	const alice = "setpriv --reuid=1000 --regid=1000 --clear-groups "
	for _, test := range []struct {
		name, command string
		want          Ownership
	}{
		{"the host's", "", Ownership{}},
		{"namespaces of root's", "unshare --net --uts ", Ownership{}},
		{"a user namespace of root's", "unshare --user --map-root-user --net ", Ownership{true, []uint32{0}}},
		{"a user's, with all others", alice + "unshare --user --map-root-user --net --ipc --uts --mount ", Ownership{true, []uint32{1000}}},
		{"a user's, in the host's others", alice + "unshare --user --map-root-user ", Ownership{true, []uint32{1000}}},
		{"a user's, in a network of root's", "unshare --net " + alice + "unshare --user --map-root-user --uts ", Ownership{true, nil}},
		{"a user's, with mounts of root's", "unshare --mount " + alice + "unshare --user --map-root-user ", Ownership{true, nil}},
		{
			"nested, with a network of the outer's", alice + "unshare --user --map-root-user --net unshare --user --map-root-user ",
			Ownership{true, []uint32{1000}},
		},
		{
			"nested, with a network of the inner's", alice + "unshare --user --map-root-user unshare --user --map-root-user --net ",
			Ownership{true, []uint32{1000, 1000}},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := exec.Command("sh", "-c", "exec "+test.command+`sh -c 'echo $$; read end'`)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = in.Close()
				_ = cmd.Wait()
			}()
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil {
				t.Fatal(err)
			}
			got, err := OwnershipOf(pid)
			if err != nil || got.Apart != test.want.Apart || !slices.Equal(got.Owners, test.want.Owners) {
				t.Errorf("got %+v, %v, want %+v", got, err, test.want)
			}
		})
	}
}
