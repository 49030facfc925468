package bench

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
)

const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// commandWorkloads are programs that people use.
func commandWorkloads() []Workload {
	walk := shell(`find /usr -printf '%s\n' >/dev/null`)
	// No file has the word.
	grep := shell(`grep -r absquatulate $DATA/tree >/dev/null || [ $? = 1 ]`)
	all := []Workload{
		{Name: "find-cold", Title: "find /usr with sizes, cold", cold: true, run: walk},
		{Name: "find-warm", Title: "find /usr with sizes, again at once", Bar: barWalk, run: walk},
		{Name: "find-warm-later", Title: "find /usr with sizes, again later", Bar: barWalk, pause: lapse, run: walk},
		{Name: "grep-cold", Title: "grep -r, 10,000 files, cold", cold: true, run: grep},
		{Name: "grep-warm", Title: "grep -r, 10,000 files, warm", run: grep},
		{Name: "untar-10k", Title: "untar 10,000 files", run: shell(`tar -xf $DATA/10k.tar`)},
		{Name: "untar-20k", Title: "untar 20,000 files", run: shell(`tar -xf $DATA/20k.tar`)},
		{Name: "rm-20k", Title: "rm -r of 20,000 files", host: shell(`tar -xf $DATA/20k.tar`), run: shell(`rm -r 20k`)},
		{Name: "git-clone", Title: "git clone, 2,000 files", run: shell(`git clone --quiet --no-local $DATA/repo.git clone`)},
		{
			Name: "git-status", Title: "git status, 2,000 files", host: shell(`git clone --quiet $DATA/repo.git clone`),
			// Git reads files again that are as old as its index, to the second.
			prepare: shell(`cd clone && sleep 1.1 && git status >/dev/null`), run: shell(`cd clone && git status >/dev/null`),
		},
		{
			Name: "compile", Title: "compile a C project of 24 files, make -j2", Bar: barExec, host: shell(`cp -r $DATA/project .`),
			run: shell(`make -s -j2 -C project`),
		},
		{
			Name: "exec", Title: "1,000 × /bin/true", Bar: barExec, prepare: shell(`/bin/true`),
			run: shell(`i=0; while [ $i -lt 1000 ]; do /bin/true; i=$((i + 1)); done`),
		},
		{Name: "sqlite-commits", Title: "sqlite, 100 inserts, each synced", run: shell(`sqlite3 db <$DATA/commits.sql`)},
		{Name: "sqlite-bulk", Title: "sqlite, 100,000 inserts at once", run: shell(`sqlite3 db <$DATA/bulk.sql`)},
	}
	for i := range all {
		w := &all[i]
		switch w.Name {
		case "untar-10k", "untar-20k", "git-clone", "sqlite-commits", "sqlite-bulk", "compile", "rm-20k", "git-status":
			w.writes = true
		}
		if first := firstRead(w.Name); first != nil {
			w.prepare = first
		}
	}
	return all
}

// firstRead has the programs and the input of a workload in memory, without doing it. Nil: it can be done twice.
func firstRead(name string) func(p place) error {
	return map[string]func(p place) error{
		"untar-10k":      shell(`tar -tf $DATA/10k.tar >/dev/null`),
		"untar-20k":      shell(`tar -tf $DATA/20k.tar >/dev/null`),
		"rm-20k":         shell(`rm --version >/dev/null`),
		"git-clone":      shell(`git clone --quiet --no-local $DATA/repo.git warm`),
		"compile":        shell(`make -s -C project f0.o && rm project/f0.o`),
		"sqlite-commits": shell(`sqlite3 warm 'create table t(x)'`),
		"sqlite-bulk":    shell(`sqlite3 warm 'create table t(x)'`),
	}[name]
}

// shell is a workload that is a script, run in the scratch directory.
func shell(script string) func(p place) error {
	return func(p place) error {
		cmd := exec.Command("/bin/sh", "-euc", script)
		cmd.Dir = p.scratch
		cmd.Env = []string{
			"PATH=" + searchPath, "LC_ALL=C", "DATA=" + p.data(), "HOME=" + filepath.Join(dir, "home"),
			"GIT_CONFIG_NOSYSTEM=1",
			// The machine's in both kinds of session. /tmp is that only in ours.
			"TMPDIR=/dev/shm",
		}
		var said bytes.Buffer
		cmd.Stderr = &said
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%w: %s", err, said.Bytes())
		}
		return nil
	}
}
