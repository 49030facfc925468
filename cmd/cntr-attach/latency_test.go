//go:build integration

package main

import (
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"
)

// BenchmarkAttach compares the time from the command line to the end of /bin/true in the booted machine
// with that of the tools that people use now. The rounds are interleaved.
func BenchmarkAttach(b *testing.B) {
	const rounds = 30
	ways := []struct {
		name    string
		command []string
	}{
		{"cntr-attach", []string{"cntr-attach", booted, "/bin/true"}},
		{"cntr-attach --direct", []string{"cntr-attach", "--direct", booted, "/bin/true"}},
		{"machinectl shell", []string{"machinectl", "--quiet", "shell", booted, "/bin/true"}},
		{"systemd-run --machine", []string{"systemd-run", "--quiet", "--wait", "--pipe", "--machine=" + booted, "/bin/true"}},
	}
	took := make([][]time.Duration, len(ways))
	for range rounds {
		for i, w := range ways {
			cmd := exec.Command(w.command[0], w.command[1:]...)
			cmd.Stderr = os.Stderr
			begin := time.Now()
			if err := cmd.Run(); err != nil {
				b.Fatalf("%q: %v", w.command, err)
			}
			took[i] = append(took[i], time.Since(begin))
		}
	}
	for i, w := range ways {
		slices.Sort(took[i])
		b.Logf("%-24s median %6.1f ms, min %6.1f ms", w.name,
			float64(took[i][rounds/2].Microseconds())/1000, float64(took[i][0].Microseconds())/1000)
		b.ReportMetric(float64(took[i][rounds/2].Microseconds())/1000, "ms/"+metric(w.name))
	}
	b.ReportMetric(0, "ns/op")
}

// metric makes a unit of a name: those have no blanks.
func metric(name string) string {
	out := []byte(name)
	for i, c := range out {
		if c == ' ' {
			out[i] = '_'
		}
	}
	return string(out)
}
