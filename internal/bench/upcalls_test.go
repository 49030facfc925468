//go:build integration

package bench

import (
	"errors"
	"os"
	"testing"
)

// TestMain lets the test binary be its own worker.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "work" {
		if Work(os.Stdin, os.Stdout) != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestUpcallsPerOperation keeps the number of requests to the server from creeping up: each costs some 20 µs.
func TestUpcallsPerOperation(t *testing.T) {
	// Lookups of the directories on the way make it a little more than a whole number.
	most := map[string]float64{
		"count-stat":       1.03, // LOOKUP
		"count-stat-again": 0.03,
		"count-stat-later": 0.03,
		"count-read":       3.05, // LOOKUP, OPEN, RELEASE
		"count-read-again": 2.05, // OPEN, RELEASE
		"count-read-later": 2.05, // OPEN, RELEASE
		// OPENDIR, two READDIRPLUS and RELEASEDIR, for a hundred entries each; and for the directory itself LOOKUP
		// and GETATTR, each perhaps twice, where what was cached has expired on the way.
		"count-walk":       0.1,
		"count-walk-again": 0.05, // OPENDIR, RELEASEDIR, GETATTR
		"count-walk-later": 0.05,
		"count-create":     6.05, // LOOKUP, CREATE, GETXATTR, GETATTR, FLUSH, RELEASE
		"count-unlink":     2.05, // UNLINK, GETATTR
		"count-write":      0.03,
		"count-exec":       11.5, // OPEN and RELEASE of the program and its libraries, mostly
	}
	b := &bench{program: dir + "/bench", workers: map[Setting]*worker{}}
	t.Cleanup(func() {
		b.stopAll()
		if err := errors.Join(removeScratch(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(b.putProgram(), makeTree()); err != nil {
		t.Fatal(err)
	}
	counted, err := b.countUpcalls(Ours)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range counted {
		limit, known := most[u.Name]
		if got := u.PerOp(Ours, ""); !known || got > limit {
			t.Errorf("%s: %.2f requests for each, want at most %.2f: %v", u.Title, got, limit, u.Counts[Ours])
		}
	}
}
