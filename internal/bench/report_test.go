package bench

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestRatioIsTheMedianOfTheRounds(t *testing.T) {
	ms := time.Millisecond
	row := newRow(Workload{Name: "x", Title: "X", Bar: 1.2})
	// In the third round the computer was busy.
	row.Times[Native] = []time.Duration{10 * ms, 10 * ms, 40 * ms}
	row.Times[Ours] = []time.Duration{11 * ms, 11 * ms, 44 * ms}
	row.Times[Cntr] = []time.Duration{22 * ms, 22 * ms, 88 * ms}
	if got, ok := row.ratio(Ours, Native); !ok || got < 1.099 || got > 1.101 {
		t.Errorf("ours ÷ native: %v, %v", got, ok)
	}
	if got := row.verdict(); got != "≤ 1.20 ✓" {
		t.Errorf("verdict %q", got)
	}
	row.Failed[Cntr] = "invalid argument"
	if _, ok := row.ratio(Cntr, Ours); ok {
		t.Error("there is a ratio to a setting that failed")
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{3}, 3}, {[]float64{3, 1}, 2}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 9, 2}, 3},
	} {
		if got := median(c.values); got != c.want {
			t.Errorf("median of %v: got %v, want %v", c.values, got, c.want)
		}
	}
}

func TestReportSurvivesJSON(t *testing.T) {
	row := newRow(Workload{Name: "x", Title: "read things"})
	for _, s := range Settings {
		row.Times[s] = []time.Duration{1500 * time.Microsecond}
	}
	row.Failed[Cntr] = "too many open files"
	data, err := json.Marshal(Report{Kernel: "6.12", Rows: []Row{*row}})
	if err != nil {
		t.Fatal(err)
	}
	var r Report
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	r.Markdown(&out)
	for _, want := range []string{"Linux 6.12", "| read things | 1.50 ms | 1.50 ms | 1.50 ms | 1.50 ms | n/a | 1.00 | 1.00 | 1.00 | n/a |", "too many open files"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestWorkloadsHaveNamesOfTheirOwn(t *testing.T) {
	seen := map[string]bool{}
	for _, w := range append(Workloads(), Counted()...) {
		if seen[w.Name] || w.Name == "" || strings.ContainsAny(w.Name, " \n") || w.Title == "" {
			t.Errorf("%q (%q)", w.Name, w.Title)
		}
		seen[w.Name] = true
	}
}
