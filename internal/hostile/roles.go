//go:build integration

package hostile

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Run is the life of a process of a hostile machine. It says "ready", and goes on until its standard input ends.
func Run(role string, args []string) error {
	switch role {
	case "grab":
		return grab()
	case "wait":
		return wait(args[0])
	case "swap":
		return swap(args)
	case "hang":
		return hang(args[0], args[1], args[2] == "read")
	}
	return fmt.Errorf("there is no role %q", role)
}

// untilTold returns a channel that is closed when standard input ends.
func untilTold() <-chan struct{} {
	end := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(end)
	}()
	return end
}

// grab tries to get hold of each process that appears in the machine, again and again, from the moment that it is
// there. In the end it prints a line for each name of a process that it has seen: the name, and what succeeded.
func grab() error {
	proc, err := os.Open("/proc")
	if err != nil {
		return err
	}
	list := func() []int {
		_, _ = proc.Seek(0, io.SeekStart)
		names, _ := proc.Readdirnames(-1)
		var pids []int
		for _, n := range names {
			if pid, err := strconv.Atoi(n); err == nil {
				pids = append(pids, pid)
			}
		}
		return pids
	}
	own := list()
	end := untilTold()
	fmt.Println("ready")
	seen := map[string]map[string]bool{}
	for {
		select {
		case <-end:
			for name, what := range seen {
				fmt.Printf("%s:", name)
				for _, a := range Attempts {
					if what[a.Name] {
						fmt.Printf(" %s,", a.Name)
					}
				}
				fmt.Println()
			}
			return nil
		default:
		}
		for _, pid := range list() {
			if slices.Contains(own, pid) || pid == os.Getpid() {
				continue
			}
			// A process that becomes another one meanwhile is looked at again.
			before := programOf(pid)
			got := Succeeded(pid)
			if before == "" || programOf(pid) != before {
				continue
			}
			if seen[before] == nil {
				seen[before] = map[string]bool{}
			}
			for _, name := range got {
				seen[before][name] = true
			}
		}
	}
}

func programOf(pid int) string {
	comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(comm))
}

// wait is a machine's first process that does nothing.
func wait(root string) error {
	if err := unix.Chroot(root); err != nil {
		return err
	}
	end := untilTold()
	fmt.Println("ready")
	<-end
	return nil
}

// swap exchanges pairs of files, again and again.
func swap(pairs []string) error {
	end := untilTold()
	fmt.Println("ready")
	for {
		for i := 0; i < len(pairs); i += 2 {
			if err := unix.Renameat2(unix.AT_FDCWD, pairs[i], unix.AT_FDCWD, pairs[i+1], unix.RENAME_EXCHANGE); err != nil {
				return fmt.Errorf("exchanging %s and %s: %w", pairs[i], pairs[i+1], err)
			}
		}
		select {
		case <-end:
			return nil
		default:
		}
	}
}

// hang serves a file system in a root directory that never answers. What it is mounted on, a directory or a file, stays
// accessible as such. Requests are read, and so cannot be taken back by who waits for them, or left alone.
func hang(root, on string, read bool) error {
	path := root + on
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	device, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0,allow_other", device, st.Mode&unix.S_IFMT)
	if err := unix.Mount("hang", path, "fuse.hang", 0, options); err != nil {
		return fmt.Errorf("mounting on %s: %w", path, err)
	}
	if err := answerInit(device); err != nil {
		return err
	}
	if err := unix.Chroot(root); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil && on != "/proc" {
		return err
	}
	end := untilTold()
	fmt.Println("ready")
	if read {
		go func() {
			request := make([]byte, 1<<20)
			for {
				if _, err := unix.Read(device, request); err != nil && err != unix.EINTR && err != unix.EAGAIN {
					return
				}
			}
		}()
	}
	<-end
	return nil
}

// answerInit does the handshake of FUSE (linux/fuse.h), the only request that is answered.
func answerInit(device int) error {
	request := make([]byte, 1<<20)
	if _, err := unix.Read(device, request); err != nil {
		return fmt.Errorf("reading FUSE_INIT: %w", err)
	}
	answer := struct {
		length     uint32
		errno      int32
		unique     uint64
		major      uint32
		minor      uint32
		readahead  uint32
		flags      uint32
		background uint16
		congestion uint16
		maxWrite   uint32
		timeGran   uint32
		rest       [9]uint32
	}{unique: *(*uint64)(unsafe.Pointer(&request[8])), major: 7, minor: 31, maxWrite: 4096, timeGran: 1}
	answer.length = uint32(unsafe.Sizeof(answer))
	_, err := unix.Write(device, unsafe.Slice((*byte)(unsafe.Pointer(&answer)), answer.length))
	if err != nil {
		return fmt.Errorf("answering FUSE_INIT: %w", err)
	}
	return nil
}
