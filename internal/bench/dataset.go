package bench

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	treeFiles   = 10_000
	filesPerDir = 100
)

// treeFile is the path of one of the small files.
func treeFile(p place, i int) string {
	return p.data("tree") + "/" + treeName(i)
}

func treeName(i int) string {
	return "d" + strconv.Itoa(i/filesPerDir) + "/f" + strconv.Itoa(i) + ".txt"
}

// sequence is numbers that look random and are the same each time (splitmix64).
type sequence uint64

func (s *sequence) next(below int) int {
	*s += 0x9e3779b97f4a7c15
	x := uint64(*s)
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return int((x ^ x>>31) % uint64(below))
}

// makeData makes what the workloads read, on the host.
func makeData() error {
	p := place{scratch: dir + "/data"}
	for _, d := range []string{p.scratch, dir + "/home"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := fillFile(p.data("big"), readSize); err != nil {
		return err
	}
	for _, s := range Settings {
		if err := fillFile(filepath.Join(s.dir(), "big"), writeSize); err != nil {
			return err
		}
	}
	if err := makeTree(); err != nil {
		return err
	}
	if err := makeTar(p.data("20k.tar"), "20k", 2*treeFiles); err != nil {
		return err
	}
	if err := makeProject(p.data("project")); err != nil {
		return err
	}
	if err := makeSQL(p); err != nil {
		return err
	}
	return shell(`
		exec >/dev/null
		git config --global init.defaultBranch main
		git config --global user.name bench
		git config --global user.email bench@example.com
		git config --global gc.auto 0
		export GIT_AUTHOR_DATE=2001-02-03T04:05:06Z GIT_COMMITTER_DATE=2001-02-03T04:05:06Z
		git init --quiet source
		cd source
		for i in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19; do cp -r ../tree/d$i .; done
		git add .
		git commit --quiet -m 'All files.'
		for i in 1 2 3 4 5; do
			for f in d$i/*; do echo $i >>$f; done
			git commit --quiet -a -m "Change $i."
		done
		git gc --quiet
		cd ..
		git clone --quiet --bare source repo.git
		rm -r source
	`)(p)
}

// makeTree makes the small files.
func makeTree() error {
	p := place{scratch: dir + "/data"}
	if err := os.MkdirAll(p.scratch, 0o755); err != nil {
		return err
	}
	if err := makeTar(p.data("10k.tar"), "10k", treeFiles); err != nil {
		return err
	}
	return shell(`tar -xf 10k.tar && mv 10k tree`)(p)
}

// create makes a file with what write writes.
func create(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, mib)
	return errors.Join(write(w), w.Flush(), f.Close())
}

func fillFile(path string, size int64) error {
	return create(path, func(w io.Writer) error {
		_, err := io.CopyN(w, rand.NewChaCha8([32]byte{}), size)
		return err
	})
}

var words = strings.Fields(`a all and any are at be by can core device each entry file from has host if in inode
	into is kernel keeps last link lock machine mount name new no not of on one open or other page path process reads
	root same seen server session so than that the their then these they this time to tree under until user was what
	when where which who with without word writes`)

// text is size bytes of lines of words.
func text(r *sequence, size int) []byte {
	var b []byte
	for len(b) < size {
		b = append(b, words[r.next(len(words))]...)
		if b = append(b, ' '); r.next(12) == 0 {
			b[len(b)-1] = '\n'
		}
	}
	return b[:size]
}

// makeTar makes an archive of files of up to 4 KiB of text, below one directory.
func makeTar(path, top string, files int) error {
	return create(path, func(f io.Writer) error {
		r, w := sequence(3), tar.NewWriter(f)
		mtime := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
		for i := range files {
			if i%filesPerDir == 0 {
				name := filepath.Dir(top + "/" + treeName(i))
				err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: mtime})
				if err != nil {
					return err
				}
			}
			body := text(&r, r.next(4*kib))
			err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: top + "/" + treeName(i), Size: int64(len(body)), Mode: 0o644, ModTime: mtime})
			if err != nil {
				return err
			}
			if _, err := w.Write(body); err != nil {
				return err
			}
		}
		return w.Close()
	})
}

// projectFiles is how many C files the project has.
const projectFiles = 24

// makeProject makes a C project: each file includes what programs include, has functions of its own, and calls those
// of the file before it.
func makeProject(path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	var objects []string
	for i := range projectFiles {
		objects = append(objects, fmt.Sprintf("f%d.o", i))
		err := create(filepath.Join(path, fmt.Sprintf("f%d.c", i)), func(w io.Writer) error { return cFile(w, i) })
		if err != nil {
			return err
		}
	}
	header := func(w io.Writer) error {
		for i := range projectFiles {
			fmt.Fprintf(w, "int file%d(struct record *records, size_t n);\n", i)
		}
		return nil
	}
	makefile := func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "CFLAGS = -O1 -g\nall: %s\n\t$(CC) -o all $^\n%%.o: %%.c project.h\n\t$(CC) $(CFLAGS) -c -o $@ $<\n",
			strings.Join(objects, " "))
		return err
	}
	return errors.Join(create(filepath.Join(path, "project.h"), header), create(filepath.Join(path, "Makefile"), makefile))
}

func cFile(w io.Writer, i int) error {
	for _, h := range []string{
		"assert", "ctype", "dirent", "errno", "fcntl", "inttypes", "limits", "math", "netdb", "poll", "pthread", "pwd",
		"signal", "stdio", "stdlib", "string", "sys/mman", "sys/socket", "sys/stat", "sys/wait", "time", "unistd",
	} {
		fmt.Fprintf(w, "#include <%s.h>\n", h)
	}
	fmt.Fprint(w, "struct record { char name[32]; long key, values[8]; };\n#include \"project.h\"\n")
	const functions = 12
	for f := range functions {
		fmt.Fprintf(w, `
static int step%[1]d(struct record *r, size_t n) {
	long sum = %[1]d;
	for (size_t i = 0; i < n; i++) {
		snprintf(r[i].name, sizeof r[i].name, "%%ld-%%zu", r[i].key, i);
		for (int k = 0; k < 8; k++)
			sum += r[i].values[k] * (k + %[1]d) %% 97;
		if (isdigit((unsigned char)r[i].name[0]) && sum > INT_MAX / 2)
			sum = -sum / 3;
		r[i].key ^= sum;
	}
	return (int)sum;
}
`, f)
	}
	fmt.Fprintf(w, "int file%d(struct record *r, size_t n) {\n\tint sum = 0;\n", i)
	for f := range functions {
		fmt.Fprintf(w, "\tsum += step%d(r, n);\n", f)
	}
	if i > 0 {
		fmt.Fprintf(w, "\tsum += file%d(r, n / 2);\n", i-1)
	}
	fmt.Fprint(w, "\treturn sum;\n}\n")
	if i == projectFiles-1 {
		fmt.Fprintf(w, "int main(void) { static struct record r[64]; return file%d(r, 64) == 42; }\n", i)
	}
	return nil
}

// makeSQL makes the scripts for sqlite.
func makeSQL(p place) error {
	inserts := func(n int, before, after string) func(io.Writer) error {
		return func(w io.Writer) error {
			r := sequence(4)
			fmt.Fprintf(w, "create table t(id integer primary key, k integer, v text);\ncreate index i on t(k);\n%s\n", before)
			for range n {
				fmt.Fprintf(w, "insert into t(k, v) values(%d, '%s');\n", r.next(1_000_000), words[r.next(len(words))])
			}
			_, err := fmt.Fprintln(w, after)
			return err
		}
	}
	return errors.Join(
		create(p.data("commits.sql"), inserts(100, "", "")),
		create(p.data("bulk.sql"), inserts(100_000, "begin;", "commit;")))
}
