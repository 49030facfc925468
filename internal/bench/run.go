package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sys/unix"
)

// Options say what to measure.
type Options struct {
	Rounds      int
	Only        *regexp.Regexp // names of workloads; nil: all
	MemoryFiles int            // how many files to walk for the memory of the server; 0: no memory
	Upcalls     bool           // count upcalls
	Verbose     bool
	Log         func(format string, args ...any)
}

// A bench is one run, in the test host.
type bench struct {
	Options
	program string // path of this program, in all settings
	runs    int    // how many scratch directories there were
	workers map[Setting]*worker
	rows    []*Row
}

// Measure runs everything that is asked for, on the test host. It leaves nothing behind but /srv/bench.
func Measure(o Options) (*Report, error) {
	b := &bench{Options: o, program: dir + "/bench", workers: map[Setting]*worker{}}
	defer func() {
		b.stopAll()
		_ = removeScratch()
	}()
	report, err := newReport(o.Rounds)
	if err != nil {
		return nil, err
	}
	b.Log("generating data")
	if err := b.setUp(); err != nil {
		return nil, fmt.Errorf("set up: %w", err)
	}
	for _, w := range Workloads() {
		if o.Only == nil || o.Only.MatchString(w.Name) {
			b.rows = append(b.rows, newRow(w))
		}
	}
	for round := range o.Rounds {
		begin := time.Now()
		if err := b.round(round); err != nil {
			return nil, err
		}
		b.Log("round %d of %d took %.0f s", round+1, o.Rounds, time.Since(begin).Seconds())
	}
	for _, r := range b.rows {
		report.Rows = append(report.Rows, *r)
	}
	if o.Upcalls {
		b.Log("counting upcalls")
		if report.Upcalls, err = b.countUpcalls(Ours, Cntr); err != nil {
			return nil, fmt.Errorf("count upcalls: %w", err)
		}
	}
	if o.MemoryFiles > 0 {
		b.Log("walking %d files", o.MemoryFiles)
		if report.Memory, err = b.measureMemory(o.MemoryFiles); err != nil {
			return nil, fmt.Errorf("memory: %w", err)
		}
	}
	report.Ended = time.Now()
	return report, nil
}

// setUp puts the program and the data where the settings find them.
func (b *bench) setUp() error {
	if err := b.putProgram(); err != nil {
		return err
	}
	return errors.Join(buildPreload(), makeData())
}

// putProgram begins with an empty directory and puts this very program there, for the workers.
func (b *bench) putProgram() error {
	if err := errors.Join(removeScratch(), os.RemoveAll(dir)); err != nil {
		return err
	}
	for _, s := range Settings {
		if err := os.MkdirAll(s.dir(), 0o755); err != nil {
			return err
		}
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	return os.WriteFile(b.program, self, 0o755)
}

// round does each workload once in each setting.
func (b *bench) round(round int) error {
	defer b.stopAll()
	for _, row := range b.rows {
		begin := time.Now()
		if err := freshScratch(); err != nil {
			return err
		}
		// See the package documentation: cntr.
		if err := dropCaches(2); err != nil {
			return err
		}
		for i := range Settings {
			s := Settings[(i+round)%len(Settings)]
			if row.Failed[s] != "" {
				continue
			}
			took, err := b.measure(s, &row.workload)
			var failed failure
			switch {
			case err == nil:
				row.Times[s] = append(row.Times[s], took)
			case errors.As(err, &failed), errors.Is(err, errTimeout):
				b.Log("%s in %s: %v", row.Name, s, err)
				row.Failed[s] = err.Error()
			default:
				return fmt.Errorf("%s: %w", row.Name, err)
			}
		}
		b.stopAll()
		if b.Verbose {
			b.Log("%s took %.1f s", row.Name, time.Since(begin).Seconds())
		}
	}
	return nil
}

// measure does one workload in one setting.
func (b *bench) measure(s Setting, w *Workload) (time.Duration, error) {
	var took time.Duration
	err := b.within(s, w, func(do func(string) (time.Duration, error)) (err error) {
		took, err = do("run")
		return err
	})
	return took, err
}

// within prepares a workload and calls what runs it.
func (b *bench) within(s Setting, w *Workload, f func(do func(step string) (time.Duration, error)) error) error {
	worker, err := b.worker(s, w.writes)
	if err != nil {
		return err
	}
	// Never the same name twice: a session may still know the old directory by it.
	b.runs++
	scratch := filepath.Join(scratchDir, fmt.Sprint(b.runs))
	if err := os.Mkdir(scratch, 0o755); err != nil {
		return err
	}
	if w.host != nil {
		if err := w.host(place{work: s.dir(), scratch: scratch}); err != nil {
			return fmt.Errorf("prepare: %w", err)
		}
	}
	if _, err := worker.do("prepare", w.Name, scratch); err != nil {
		return err
	}
	if w.writes && w.Ops == 0 || w.cold { // counts need no quiet disk
		if err := syncFS(); err != nil {
			return err
		}
	}
	if w.cold {
		if err := dropCaches(3); err != nil {
			return err
		}
	}
	time.Sleep(w.pause)
	return f(func(step string) (time.Duration, error) { return worker.do(step, w.Name, scratch) })
}

// worker returns the setting's worker, which is started if need be.
func (b *bench) worker(s Setting, writes bool) (*worker, error) {
	if w := b.workers[s]; w != nil && w.writes == writes {
		return w, nil
	}
	b.stop(s)
	w, err := s.start(writes, b.program, "work")
	if err != nil {
		return nil, err
	}
	b.workers[s] = w
	return w, favour(b.program)
}

func (b *bench) stop(s Setting) {
	if w := b.workers[s]; w != nil {
		w.stop()
		delete(b.workers, s)
	}
}

func (b *bench) stopAll() {
	for _, s := range Settings {
		b.stop(s)
	}
}

// dropCaches has the kernel drop what it remembers and need not: 2 for names and inodes, 3 for pages too.
func dropCaches(what int) error {
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte(fmt.Sprint(what)), 0)
}

// syncFS writes back what is dirty.
func syncFS() error {
	for _, path := range []string{scratchDir, dir} { // the one is in a file on the other
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		err = unix.Syncfs(fd)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("sync %s: %w", path, err)
		}
	}
	return nil
}
