package bench

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

// Markdown writes the report for people.
func (r *Report) Markdown(w io.Writer) {
	fmt.Fprintf(w, "Linux %s, %d × %s, %d MiB, %s, %d rounds, load average before %.1f.\n\n",
		r.Kernel, r.CPUs, r.CPU, r.MemoryMB, r.Begun.Format(time.DateOnly), r.Rounds, r.Busy)
	var versions []string
	for _, name := range slices.Sorted(maps.Keys(r.Versions)) {
		versions = append(versions, name+" "+r.Versions[name])
	}
	fmt.Fprintf(w, "%s.\n", strings.Join(versions, ", "))
	if len(r.Rows) > 0 {
		r.times(w)
	}
	if len(r.Upcalls) > 0 {
		r.upcalls(w)
	}
	if len(r.Memory) > 0 {
		r.memory(w)
	}
}

// times writes the table of workloads.
func (r *Report) times(w io.Writer) {
	fmt.Fprint(w, "\nTimes are medians. Ratios are medians of the rounds' own; below 1 is faster than native, and behind cntr.\n\n"+
		"| | native | bind mount | ours | io_uring | cntr 1.6.0 | bind ÷ native | ours ÷ native | io_uring ÷ native | cntr ÷ ours | bar |\n"+
		"|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|\n")
	var notes []string
	var logs float64
	compared := 0
	for i := range r.Rows {
		row := &r.Rows[i]
		fmt.Fprintf(w, "| %s", row.Title)
		for _, s := range Settings {
			fmt.Fprintf(w, " | %s", row.time(s))
		}
		ours, oursOK := row.ratio(Ours, Native)
		uring, uringOK := row.ratio(URing, Native)
		bind, bindOK := row.ratio(Bind, Native)
		ahead, aheadOK := row.ratio(Cntr, Ours)
		fmt.Fprintf(w, " | %s | %s | %s | %s | %s |\n", ratio(bind, bindOK), ratio(ours, oursOK), ratio(uring, uringOK), ratio(ahead, aheadOK), row.verdict())
		if aheadOK {
			logs += math.Log(ahead)
			compared++
		}
		for _, s := range Settings {
			if why := row.Failed[s]; why != "" {
				notes = append(notes, fmt.Sprintf("%s, %s: %s", row.Title, s, why))
			}
		}
	}
	if compared > 0 {
		fmt.Fprintf(w, "\nGeometric mean of cntr ÷ ours over %d rows: **%.2f**\n", compared, math.Exp(logs/float64(compared)))
	}
	if len(notes) > 0 {
		fmt.Fprintf(w, "\nn/a:\n\n- %s\n", strings.Join(notes, "\n- "))
	}
}

// time is a cell with a median.
func (row *Row) time(s Setting) string {
	if row.Failed[s] != "" || len(row.Times[s]) == 0 {
		return "n/a"
	}
	ms := float64(median(row.Times[s]).Microseconds()) / 1000
	return fmt.Sprintf("%.*f ms", decimals(ms), ms)
}

// decimals is how many of them leave three digits.
func decimals(x float64) int {
	switch {
	case x < 10:
		return 2
	case x < 100:
		return 1
	}
	return 0
}

func ratio(x float64, ok bool) string {
	if !ok {
		return "n/a"
	}
	return fmt.Sprintf("%.2f", x)
}

// ratio is the median of the ratios of two settings' times in each round.
func (row *Row) ratio(a, b Setting) (float64, bool) {
	n := min(len(row.Times[a]), len(row.Times[b]))
	if n == 0 || row.Failed[a] != "" || row.Failed[b] != "" {
		return 0, false
	}
	ratios := make([]float64, n)
	for i := range n {
		ratios[i] = float64(row.Times[a][i]) / float64(row.Times[b][i])
	}
	return median(ratios), true
}

// verdict says whether the row meets its bar, and whether it is ahead of cntr.
func (row *Row) verdict() string {
	var said []string
	if ours, ok := row.ratio(Ours, Native); ok && row.Bar > 0 {
		said = append(said, fmt.Sprintf("≤ %.2f %s", row.Bar, mark(ours <= row.Bar)))
	}
	// Cut to what is shown.
	if ahead, ok := row.ratio(Cntr, Ours); ok && math.Round(ahead*100) < 100 {
		said = append(said, "behind cntr ✗")
	}
	return strings.Join(said, ", ")
}

func mark(ok bool) string {
	if ok {
		return "✓"
	}
	return "✗"
}

// median is the middle, or the mean of the two in the middle.
func median[T ~int64 | ~float64](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// upcalls writes the table of requests per operation.
func (r *Report) upcalls(w io.Writer) {
	fmt.Fprint(w, "\nRequests that reach the server, for each operation:\n\n| | ours | cntr 1.6.0 | what ours are |\n|---|---:|---:|---|\n")
	for i := range r.Upcalls {
		u := &r.Upcalls[i]
		var kinds []string
		for _, name := range slices.Sorted(maps.Keys(u.Counts[Ours])) {
			if n := u.PerOp(Ours, name); n >= 0.005 {
				kinds = append(kinds, fmt.Sprintf("%.2f %s", n, name))
			}
		}
		fmt.Fprintf(w, "| %s | %.2f | %.2f | %s |\n", u.Title, u.PerOp(Ours, ""), u.PerOp(Cntr, ""), strings.Join(kinds, ", "))
	}
}

// memory writes what the server used.
func (r *Report) memory(w io.Writer) {
	fmt.Fprintf(w, "\nThe server's memory, walking %d files:\n\n| | resident | private | for each file | descriptors |\n|---|---:|---:|---:|---:|\n",
		r.Memory[len(r.Memory)-1].Files)
	for _, m := range r.Memory {
		each := ""
		if m.Files > 0 {
			each = fmt.Sprintf("%d bytes", (m.Private-r.Memory[0].Private)*kib/m.Files)
		}
		fmt.Fprintf(w, "| %s | %.1f MiB | %.1f MiB | %s | %d |\n", m.When, float64(m.RSS)/kib, float64(m.Private)/kib, each, m.Descriptors)
	}
}
